package demo

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
)

func TestTheInsidersCasesGoOutUnseenWithoutGuardsAndReachAPersonWithThem(t *testing.T) {
	if testing.Short() {
		t.Skip("two hospitals and an attack: skipped with -short")
	}
	var out bytes.Buffer
	story, err := Insider(t.Context(), &out, InsiderOptions{Dir: filepath.Join(t.TempDir(), "story"), Days: 2, PerDay: 4, Eps: "8/255", Fit: 240, Seed: 1})
	if errors.Is(err, engine.ErrNoRuntime) {
		t.Skipf("SKIPPED, nothing was checked: %v", err)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	without, with := story.Hospital[0].total(), story.Hospital[1].total()
	if without.Insider.Suspicious != 8 || story.Turned < 7 {
		t.Errorf("%d suspicious cases, %d of them turned", without.Insider.Suspicious, story.Turned)
	}
	if without.Insider.Silent < 6 {
		t.Errorf("without guards only %d of 8 went out unseen:\n%s", without.Insider.Silent, out.String())
	}
	if with.Insider.Silent > 1 || with.Insider.ByGuards < 6 {
		t.Errorf("with guards %d went out unseen, the guards stopped %d:\n%s", with.Insider.Silent, with.Insider.ByGuards, out.String())
	}
	if with.Others.Person > without.Others.Person+3 {
		t.Errorf("of everybody else's %d cases a person saw %d without guards and %d with them", with.Others.Sent, without.Others.Person, with.Others.Person)
	}
	if story.Package == story.Guarded || !strings.Contains(out.String(), "went out as clear and unseen by anybody") {
		t.Errorf("the story:\n%s", out.String())
	}
}

func TestAStoryThatCannotBeToldIsRefused(t *testing.T) {
	good := InsiderOptions{Dir: t.TempDir(), Days: 1, PerDay: 1, Eps: "8/255", Fit: 200}
	for what, change := range map[string]func(*InsiderOptions){
		"no days":       func(o *InsiderOptions) { o.Days = 0 },
		"no cases":      func(o *InsiderOptions) { o.PerDay = 0 },
		"two bounds":    func(o *InsiderOptions) { o.Eps = "2/255,4/255" },
		"a wrong bound": func(o *InsiderOptions) { o.Eps = "much" },
		"a full folder": func(o *InsiderOptions) { o.Dir = ".." },
	} {
		o := good
		change(&o)
		if _, err := Insider(t.Context(), &bytes.Buffer{}, o); err == nil {
			t.Errorf("%s: the story was told", what)
		}
	}
}
