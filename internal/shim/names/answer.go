// SPDX-License-Identifier: Apache-2.0

package names

import (
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// ttl of our own answers, in seconds, as in Docker. Clients that cache are few; the
// others see a change at their next question.
const ttl = 600

// smallest is the answer size in bytes that every UDP client accepts (RFC 1035,
// 4.2.1).
const smallest = 512

// query is a question that was received.
type query struct {
	raw      []byte
	header   dnsmessage.Header
	question dnsmessage.Question
	size     int  // maximum size in bytes of our own answers over UDP
	room     int  // maximum size in bytes that the client accepts over UDP
	edns     bool // it has an OPT record
}

// parse decodes a message. It reports false for one without a single question.
func parse(raw []byte) (query, bool) {
	q := query{raw: raw, size: smallest, room: smallest}
	var p dnsmessage.Parser
	var err error
	if q.header, err = p.Start(raw); err != nil || q.header.Response || q.header.OpCode != 0 {
		return q, false
	}
	all, err := p.AllQuestions()
	if err != nil || len(all) != 1 {
		return q, false
	}
	q.question = all[0]
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return q, true
	}
	for {
		h, err := p.AdditionalHeader()
		if err != nil {
			return q, true
		}
		if h.Type == dnsmessage.TypeOPT {
			q.edns = true
			q.room = max(smallest, int(h.Class))
			q.size = min(q.room, 4096)
		}
		if p.SkipAdditional() != nil {
			return q, true
		}
	}
}

// local answers from the table. ok is false for names that are to be forwarded.
func (t *table) local(q query) (answer []byte, ok bool) {
	if q.question.Class != dnsmessage.ClassINET {
		return nil, false
	}
	name := strings.TrimSuffix(q.question.Name.String(), ".")
	if q.question.Type == dnsmessage.TypePTR {
		addr, is := reversed(name)
		if !is {
			return nil, false
		}
		host, known := t.reverse(addr)
		if !known {
			return nil, false
		}
		if host == "" {
			return q.answer(dnsmessage.RCodeNameError, nil), true
		}
		target, err := dnsmessage.NewName(host + ".")
		if err != nil {
			return q.answer(dnsmessage.RCodeServerFailure, nil), true
		}
		return q.answer(dnsmessage.RCodeSuccess, func(b *dnsmessage.Builder, h dnsmessage.ResourceHeader) error {
			return b.PTRResource(h, dnsmessage.PTRResource{PTR: target})
		}), true
	}
	v6 := q.question.Type == dnsmessage.TypeAAAA
	got := t.lookup(name, v6)
	if !got.known {
		return nil, false
	}
	if len(got.addrs) == 0 {
		if len(t.lookup(name, !v6).addrs) == 0 {
			return q.answer(dnsmessage.RCodeNameError, nil), true
		}
		return q.answer(dnsmessage.RCodeSuccess, nil), true
	}
	if q.question.Type != dnsmessage.TypeA && !v6 {
		return q.answer(dnsmessage.RCodeSuccess, nil), true
	}
	return q.answer(dnsmessage.RCodeSuccess, func(b *dnsmessage.Builder, h dnsmessage.ResourceHeader) error {
		h.TTL = got.ttl
		for _, a := range got.addrs {
			var err error
			if v6 {
				err = b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: a.As16()})
			} else {
				err = b.AResource(h, dnsmessage.AResource{A: a.As4()})
			}
			if err != nil {
				return err
			}
		}
		return nil
	}), true
}

// answer builds a response to the question.
func (q query) answer(code dnsmessage.RCode, records func(*dnsmessage.Builder, dnsmessage.ResourceHeader) error) []byte {
	b := dnsmessage.NewBuilder(make([]byte, 0, 128), dnsmessage.Header{
		ID: q.header.ID, Response: true, OpCode: q.header.OpCode, Authoritative: true,
		RecursionDesired: q.header.RecursionDesired, RecursionAvailable: true, RCode: code,
	})
	b.EnableCompression()
	err := b.StartQuestions()
	if err == nil {
		err = b.Question(q.question)
	}
	if err == nil {
		err = b.StartAnswers()
	}
	if err == nil && records != nil {
		err = records(&b, dnsmessage.ResourceHeader{Name: q.question.Name, Class: dnsmessage.ClassINET, TTL: ttl})
	}
	if err == nil && q.edns {
		if err = b.StartAdditionals(); err == nil {
			var h dnsmessage.ResourceHeader
			if err = h.SetEDNS0(4096, dnsmessage.RCodeSuccess, false); err == nil {
				err = b.OPTResource(h, dnsmessage.OPTResource{})
			}
		}
	}
	out, ferr := b.Finish()
	if err != nil || ferr != nil {
		return nil
	}
	return out
}

// fit replaces an answer that is too large for a datagram by an empty one with the
// TC flag, so that the client asks again over TCP.
func (q query) fit(answer []byte) []byte {
	if len(answer) <= q.size {
		return answer
	}
	return q.short()
}

// cut is fit for the answer of an upstream server. Such an answer may be as large
// as the client accepts, because the server got the client's limit with the
// question.
func (q query) cut(answer []byte) []byte {
	if len(answer) <= q.room {
		return answer
	}
	return q.short()
}

// short returns an empty answer with the TC flag: the client then asks over TCP.
func (q query) short() []byte {
	short := q.answer(dnsmessage.RCodeSuccess, nil)
	if len(short) > 2 {
		short[2] |= 0x02 // TC
	}
	return short
}

// refusal returns the answer to a message that is not a valid question, or nil if
// it can't be answered. Without an answer the client would retry.
func refusal(raw []byte) []byte {
	if len(raw) < 12 || raw[2]&0x80 != 0 {
		return nil
	}
	code := byte(dnsmessage.RCodeFormatError)
	if raw[2]&0x78 != 0 {
		code = byte(dnsmessage.RCodeNotImplemented)
	}
	return []byte{raw[0], raw[1], 0x80 | raw[2]&0x79, 0x80 | code, 0, 0, 0, 0, 0, 0, 0, 0}
}

// failure returns the answer (SERVFAIL) for when no server answered.
func (q query) failure() []byte { return q.answer(dnsmessage.RCodeServerFailure, nil) }

// missing returns the answer (NXDOMAIN) for a name that may not be forwarded.
func (q query) missing() []byte { return q.answer(dnsmessage.RCodeNameError, nil) }
