// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/moby/swarmkit/v2/api"
)

// onlyNetwork and only are the network and the record of these tests. Each node has the
// record under a key of its own.
const (
	onlyNetwork = "net"
	onlyTable   = endpointTable
)

// host is the address of a host of these tests, on the loopback interface. Tests that run
// beside these, of another process, have other ones.
func host(i int) string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 64+pid>>8&63, pid&255, i)
}

// life is one process of a host.
type life struct {
	Address string
	Key     string   // of its record
	Remotes []string // whom it meets
}

// asKilled names the environment variable with the life of a process that is to be killed.
const asKilled = "HOLDFAST_TEST_GOSSIP"

func TestMain(m *testing.M) {
	if text := os.Getenv(asKilled); text != "" {
		var l life
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			panic(err)
		}
		n := newNode(l)
		for told := false; ; <-time.After(20 * time.Millisecond) {
			n.keep()
			if met := n.m.gossip != nil && len(n.m.gossip.met()) >= len(l.Remotes); met && !told {
				fmt.Println("met")
				told = true
			}
		}
	}
	os.Exit(m.Run())
}

// node is a node that does nothing but to keep its gossip.
type node struct {
	m       *Mesh
	s       snapshot
	records map[string][]byte
}

func newNode(l life) *node {
	key := &api.EncryptionKey{Subsystem: "networking:gossip", Key: []byte("0123456789abcdef")}
	return &node{
		m:       &Mesh{kick: make(chan struct{}, 1), seen: map[string]map[string]*sighting{}},
		s:       snapshot{address: Address{Listen: l.Address, Advertise: l.Address, Remotes: l.Remotes}, keys: []*api.EncryptionKey{key}},
		records: map[string][]byte{joinKey(onlyTable, l.Key): endpointRecord{Name: l.Key}.encode()},
	}
}

// keep does the part of a comparison that concerns the gossip.
func (n *node) keep() {
	n.m.keepGossip(n.s)
	if n.m.gossip != nil {
		_, _ = n.m.gossip.publish(onlyNetwork, n.records) // tried again
	}
}

// name is that in the record with a key, as this node has heard of it.
func (n *node) name(key string) string {
	if n.m.gossip == nil {
		return ""
	}
	return n.m.gossip.remote(onlyNetwork)[key].Endpoint.Name
}

// start starts a node in this process, which ends with the test.
func start(t *testing.T, l life) *node {
	n := newNode(l)
	t.Cleanup(func() {
		if n.m.ending != nil {
			<-n.m.ending
		}
		if n.m.gossip != nil {
			n.m.gossip.close()
		}
	})
	return n
}

// startToKill starts a process, and returns what kills it. It has met its remotes.
func startToKill(t *testing.T, l life, meanwhile ...*node) (kill func()) {
	t.Helper()
	text, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), asKilled+"="+string(text)), os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	met := make(chan bool, 1)
	go func() { met <- bufio.NewScanner(out).Scan() }()
	kill = func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	}
	t.Cleanup(kill)
	await(t, "the process that is to be killed meets others", func() bool {
		select {
		case ok := <-met:
			if !ok {
				t.Fatal("the process that is to be killed has ended")
			}
			return true
		default:
			return false
		}
	}, meanwhile...)
	return kill
}

// await keeps nodes until something is so.
func await(t *testing.T, what string, so func() bool, nodes ...*node) {
	t.Helper()
	late := time.After(2 * time.Minute)
	for !so() {
		for _, n := range nodes {
			n.keep()
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-late:
			t.Fatalf("not so: %s", what)
		}
	}
}

// The earlier process is still among the peers of others when the next one meets them.
func TestRecordsOfAProcessOutliveTheNameOfTheOneBefore(t *testing.T) {
	t.Parallel()
	a := start(t, life{Address: host(1), Key: "a"})
	a.keep()
	kill := startToKill(t, life{Address: host(2), Key: "former", Remotes: []string{host(1)}}, a)
	await(t, "the record of the process is known", func() bool { return a.name("former") != "" }, a)
	kill()
	b := start(t, life{Address: host(2), Key: "b", Remotes: []string{host(1)}})
	for {
		b.keep()
		if b.m.gossip.met()[host(1)] {
			break
		}
		<-time.After(time.Millisecond)
	}
	await(t, "the record of the next process is known", func() bool { return a.name("b") == "b" }, a, b)
	b.records[joinKey(onlyTable, "b")] = endpointRecord{Name: "changed"}.encode()
	await(t, "its change is known", func() bool { return a.name("b") == "changed" }, a, b)
	await(t, "the next process is among its own peers", func() bool { return b.m.gossip != nil && b.m.gossip.ill() == "" && len(b.m.gossip.met()) == 1 }, a, b)
	delete(b.records, joinKey(onlyTable, "b"))
	await(t, "its removal is known", func() bool { return a.name("b") == "" }, a, b)
}

// A node that hears of the later process before it hears of the earlier one takes the later one
// for dead, and hears nothing of it from then on.
func TestNodeThatIsTakenForOneThatHasLeftIsFoundAgain(t *testing.T) {
	t.Parallel()
	behind, ahead := start(t, life{Address: host(11), Key: "behind"}), start(t, life{Address: host(12), Key: "ahead"})
	behind.keep()
	ahead.keep()
	kill := startToKill(t, life{Address: host(13), Key: "former", Remotes: []string{host(11)}}, behind)
	kill()
	later := start(t, life{Address: host(13), Key: "later", Remotes: []string{host(12)}})
	await(t, "the later process is known", func() bool { return ahead.name("later") != "" }, ahead, later)
	fresh := start(t, life{Address: host(14), Key: "fresh", Remotes: []string{host(12)}})
	await(t, "the later process is heard of first", func() bool { return fresh.name("later") != "" }, ahead, later, fresh)
	fresh.s.address.Remotes = append(fresh.s.address.Remotes, host(11))
	await(t, "both other nodes are met", func() bool { return fresh.name("behind") != "" }, behind, ahead, later, fresh)
	await(t, "the record of the later process is known", func() bool { return fresh.name("later") == "later" && behind.name("later") == "later" }, behind, ahead, later, fresh)
}
