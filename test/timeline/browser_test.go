// SPDX-License-Identifier: Apache-2.0

// Package timeline tests the picture of the daemon's lives: that it shows what
// a real daemon and its containers did, and that a real browser displays its
// page correctly. It needs root and Chromium.
package timeline

import (
	"context"
	"encoding/json"
	"html"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// browser runs Chromium without a window and without access to the network.
func browser(t *testing.T, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("no chromium in PATH: run make packages")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, append([]string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND",
		"--hide-scrollbars", "--window-size=1440,900", "--user-data-dir=" + t.TempDir(),
	}, args...)...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("chromium: %v\n%s", err, &errs)
	}
	return string(out)
}

// box is an element that the browser has laid out, in pixels.
type box struct {
	Kind, Label, Fill string
	X, Y, W, H        float64
}

// measure is a script appended to a copy of the page. It writes the boxes of
// the elements into the document, where the test reads them.
const measure = `<script>
const seen=[];
for(const e of document.querySelectorAll("svg rect.bar, svg text, .facts div, .legend li, h1")){
  const r=e.getBoundingClientRect(), c=[...(e.classList)].join(" ");
  seen.push({Kind:(e.tagName+" "+c).trim(),Label:e.getAttribute("aria-label")||e.firstChild.textContent.trim()||e.textContent,Fill:getComputedStyle(e).fill,X:r.x,Y:r.y,W:r.width,H:r.height});
}
const p=document.createElement("pre");p.id="measured";
p.textContent=JSON.stringify({boxes:seen,width:document.documentElement.scrollWidth,view:innerWidth,paper:getComputedStyle(document.body).backgroundColor});
document.body.append(p);
</script>`

type layout struct {
	Boxes       []box
	Width, View float64
	Paper       string
}

// look lays a page out in the browser.
func look(t *testing.T, page string, args ...string) layout {
	t.Helper()
	file := filepath.Join(t.TempDir(), "page.html")
	if err := os.WriteFile(file, []byte(strings.Replace(page, "</body>", measure+"</body>", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	dom := browser(t, append(args, "--dump-dom", "file://"+file)...)
	found := regexp.MustCompile(`(?s)<pre id="measured">(.*?)</pre>`).FindStringSubmatch(dom)
	if found == nil {
		t.Fatalf("the browser has measured no elements:\n%s", dom)
	}
	var l layout
	if err := json.Unmarshal([]byte(html.UnescapeString(found[1])), &l); err != nil {
		t.Fatal(err)
	}
	return l
}

// labelled finds the only box of a kind whose label contains a text.
func (l layout) labelled(t *testing.T, kind, text string) box {
	t.Helper()
	var found []box
	for _, b := range l.Boxes {
		if strings.Contains(b.Kind, kind) && strings.Contains(b.Label, text) {
			found = append(found, b)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d boxes of kind %q have the label %q: %+v", len(found), kind, text, found)
	}
	return found[0]
}

// check holds for every page: no element covers a text, all are inside the
// page, and all are visible.
func (l layout) check(t *testing.T) {
	t.Helper()
	if l.Width > l.View {
		t.Errorf("the page is %.0f wide in a window of %.0f", l.Width, l.View)
	}
	var texts, bars []box
	for _, b := range l.Boxes {
		if b.W <= 0 || b.H <= 0 || b.X < 0 || b.Y < 0 || b.X+b.W > l.View+1 {
			t.Errorf("out of sight: %+v", b)
		}
		switch {
		case strings.HasPrefix(b.Kind, "text"):
			texts = append(texts, b)
		case strings.HasPrefix(b.Kind, "rect"):
			bars = append(bars, b)
		}
	}
	for i, a := range texts {
		for _, b := range append(texts[i+1:len(texts):len(texts)], bars...) {
			// Fonts leave a pixel of space around a text, so that much overlap
			// is permitted.
			if a.X+1 < b.X+b.W && b.X+1 < a.X+a.W && a.Y+3 < b.Y+b.H && b.Y+3 < a.Y+a.H {
				t.Errorf("%q lies over %q: %+v %+v", a.Label, b.Label, a, b)
			}
		}
	}
	if len(texts) == 0 || len(bars) == 0 {
		t.Errorf("%d texts and %d bars", len(texts), len(bars))
	}
}

func fixed(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../internal/timeline/testdata/page.html")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestPageIsLaidOutRightInABrowser(t *testing.T) {
	t.Parallel()
	l := look(t, fixed(t))
	l.check(t)

	// Two hours, from the left end of the first bar to the right end of the
	// last one.
	first := l.labelled(t, "rect bar daemon", "pid 700")
	last := l.labelled(t, "rect bar daemon", "pid 1702")
	hour := (last.X + last.W - first.X) / 2
	at := func(b box) (from, to float64) { return (b.X - first.X) / hour * 60, (b.X + b.W - first.X) / hour * 60 }
	near := func(got, want float64) bool { return got > want-0.5 && got < want+0.5 }
	for _, c := range []struct {
		kind, label string
		from, to    float64 // in minutes
	}{
		{"rect bar daemon", "pid 700", 0, 30},
		{"rect bar unseen", "pid 700", 30, 40},
		{"rect bar daemon", "pid 912", 40, 70},
		{"rect bar daemon", "pid 1440", 75, 100},
		{"rect bar daemon", "pid 1702", 100, 120},
		{"rect bar run", "web:", 1, 120},
		{"rect bar run", "worker: run from 2026-03-04 12:10:00", 10, 25},
		{"rect bar run", "worker: run from 2026-03-04 12:38:00", 38, 110},
		{"rect bar paused", "database", 50, 58},
		{"rect bar run ended", "job:", 30, 72},
	} {
		b := l.labelled(t, c.kind, c.label)
		if from, to := at(b); !near(from, c.from) || !near(to, c.to) {
			t.Errorf("%s %s is drawn from minute %.1f to %.1f, want %v to %v", c.kind, c.label, from, to, c.from, c.to)
		}
	}
	// The daemon is above the containers, and each has its own row.
	rows := []box{first, l.labelled(t, "rect bar run", "web:"), l.labelled(t, "rect bar run", "database"), l.labelled(t, "rect bar run", "worker: run from 2026-03-04 12:10:00"), l.labelled(t, "rect bar run", "job:")}
	for i := 1; i < len(rows); i++ {
		if rows[i].Y < rows[i-1].Y+rows[i-1].H+8 {
			t.Errorf("%q is not below %q", rows[i].Label, rows[i-1].Label)
		}
	}
	for _, text := range []string{"4 lives, 1 crash, 2 upgrades", "up 1 h 59 min, under 4 daemons", "exit 2, 3 runs", "1.2.0", "13:15"} {
		l.labelled(t, "text", text)
	}
}

func TestPageIsDarkWhereTheReaderWantsItDark(t *testing.T) {
	t.Parallel()
	light, dark := look(t, fixed(t)), look(t, fixed(t), "--blink-settings=preferredColorScheme=0")
	if light.Paper == dark.Paper {
		t.Errorf("both are on %s", light.Paper)
	}
	dark.check(t)
	if a, b := light.labelled(t, "rect bar run", "web:"), dark.labelled(t, "rect bar run", "web:"); a.Fill == b.Fill {
		t.Errorf("both bars are %s", a.Fill)
	}
}

func TestPageIsWholeOnASmallScreen(t *testing.T) {
	t.Parallel()
	l := look(t, fixed(t), "--window-size=600,900")
	if l.Width > l.View {
		t.Errorf("the page is %.0f wide in a window of %.0f: the picture should scroll, not the page", l.Width, l.View)
	}
}

// TestPageIsPainted counts the pixels of each colour.
func TestPageIsPainted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, shot := filepath.Join(dir, "page.html"), filepath.Join(dir, "page.png")
	if err := os.WriteFile(file, []byte(fixed(t)), 0o644); err != nil {
		t.Fatal(err)
	}
	browser(t, "--screenshot="+shot, "file://"+file)
	f, err := os.Open(shot)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	count := map[[3]uint32]int{}
	for y := range img.Bounds().Dy() {
		for x := range img.Bounds().Dx() {
			r, g, b, _ := img.At(x, y).RGBA()
			count[[3]uint32{r >> 8, g >> 8, b >> 8}]++
		}
	}
	for what, c := range map[string][3]uint32{
		"the daemon's lives": {0x3b, 0x5b, 0xdb}, "runs": {0x2b, 0x8a, 0x5a}, "runs that have ended": {0xa9, 0xcd, 0xb9}, "pauses": {0xe8, 0xb3, 0x39},
	} {
		if count[c] < 500 {
			t.Errorf("%d points have the colour of %s", count[c], what)
		}
	}
}
