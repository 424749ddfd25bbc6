// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"go/ast"
	"go/token"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// bannedWords are words of docs/glossary.md, "Words that are not used", with what
// is written instead. They are searched in the names that a room declares and in
// its comments, tests excepted.
var bannedWords = []struct {
	words   string // between them |
	instead string
	// alone: the word is banned as a whole name only. Of a longer name the rest is
	// its object.
	alone bool
	// names: comments may use it.
	names bool
	rooms []string
}{
	{words: "tell|tells|told|telling", instead: "report, emit, log, notify", rooms: []string{"internal/network", "internal/image"}},
	{words: "who|whom|whoever|somebody|someone|anybody|everybody", instead: "client, daemon, shim, holder, caller", rooms: []string{"internal/network", "internal/image"}},
	{words: "heal|heals|healed|healing", instead: "repair", rooms: []string{"internal/network", "internal/image"}},
	// bridge speaks netlink, whose word for an interface is link.
	{words: "link|links|linked|relink", instead: "interface, veth, parent; legacy link for --link", rooms: []string{"internal/network"}},
	{words: "keep|keeps|kept|hold|holds|held", instead: "a name with its object, or pin for layers", alone: true, names: true, rooms: []string{"internal/network", "internal/network/bridge", "internal/image"}},
	{words: "launch|launches|launched", instead: "start", rooms: []string{"internal/network", "internal/network/bridge", "internal/image"}},
	{words: "follow|follows", instead: "subscribe for events", alone: true, names: true, rooms: []string{"internal/network", "internal/network/bridge", "internal/image"}},
}

// notTheWord are phrases in which a banned word has its ordinary meaning.
var notTheWord = regexp.MustCompile(`(?i)legacy links?|legacy-links?|link-local|link-layer|no one|\(ip link\)|symbolic links?|hard links?`)

// nameParts splits a name such as HTTPServer or legacyLinks into its words, in
// lower case. LegacyLink is one word.
func nameParts(name string) []string {
	var parts []string
	rs := []rune(name)
	start := 0
	for i := 1; i <= len(rs); i++ {
		if i == len(rs) || unicode.IsUpper(rs[i]) && (!unicode.IsUpper(rs[i-1]) || i+1 < len(rs) && unicode.IsLower(rs[i+1])) || rs[i] == '_' {
			parts = append(parts, strings.ToLower(strings.Trim(string(rs[start:i]), "_")))
			start = i
		}
	}
	for i := 1; i < len(parts); i++ {
		if parts[i-1] == "legacy" && (parts[i] == "link" || parts[i] == "links") {
			parts = slices.Replace(parts, i-1, i+1, "legacylink")
		}
	}
	return parts
}

// declared calls fn for each name that a file declares: of types, functions,
// fields, parameters, variables, constants.
func declared(f *ast.File, fn func(*ast.Ident)) {
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			fn(n.Name)
		case *ast.TypeSpec:
			fn(n.Name)
		case *ast.Field:
			for _, name := range n.Names {
				fn(name)
			}
		case *ast.ValueSpec:
			for _, name := range n.Names {
				fn(name)
			}
		case *ast.AssignStmt:
			if n.Tok == token.DEFINE {
				for _, to := range n.Lhs {
					if name, ok := to.(*ast.Ident); ok {
						fn(name)
					}
				}
			}
		case *ast.RangeStmt:
			for _, to := range []ast.Expr{n.Key, n.Value} {
				if name, ok := to.(*ast.Ident); ok && n.Tok == token.DEFINE {
					fn(name)
				}
			}
		}
		return true
	})
}

// inWordRoom reports whether a package is in one of the rooms. bridge is not in
// network: it is listed itself.
func inWordRoom(pkg string, rooms []string) bool {
	if pkg == "internal/network/bridge" {
		return slices.Contains(rooms, pkg)
	}
	return slices.ContainsFunc(rooms, func(room string) bool { return within(pkg, room) })
}

func TestOneWordHasOneMeaning(t *testing.T) {
	used := map[string]bool{}
	for _, f := range sources(t) {
		if f.test {
			continue
		}
		for _, banned := range bannedWords {
			if !inWordRoom(f.pkg.rel(), banned.rooms) {
				continue
			}
			used[banned.words] = true
			words := strings.Split(banned.words, "|")
			declared(f.ast, func(name *ast.Ident) {
				parts := nameParts(name.Name)
				if banned.alone && len(parts) > 1 {
					return
				}
				for _, part := range parts {
					if slices.Contains(words, part) {
						t.Errorf("%s: %s: write %s", f.at(name.Pos()), name.Name, banned.instead)
					}
				}
			})
			if banned.names {
				continue
			}
			in := regexp.MustCompile(`(?i)\b(` + banned.words + `)\b`)
			for _, group := range f.ast.Comments {
				for _, c := range group.List {
					if word := in.FindString(notTheWord.ReplaceAllString(c.Text, "")); word != "" {
						t.Errorf("%s: %q in a comment: write %s", f.at(c.Pos()), word, banned.instead)
					}
				}
			}
		}
	}
	for _, banned := range bannedWords {
		if !used[banned.words] {
			t.Errorf("no room is left in which %q is banned", banned.words)
		}
	}
}

func TestNamesAreSplitIntoWords(t *testing.T) {
	for name, want := range map[string]string{
		"holdLayers": "hold layers", "Hold": "hold", "parseMACOf": "parse mac of", "hasLegacyLinks": "has legacylink",
		"LegacyLink": "legacylink", "bip6": "bip6", "x_y": "x y",
	} {
		if got := strings.Join(nameParts(name), " "); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}
