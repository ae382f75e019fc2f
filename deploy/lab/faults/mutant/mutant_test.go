package mutant

import (
	"go/parser"
	"go/token"
	"testing"

	"github.com/shoal-registry/shoal/deploy/proc"
)

// The texts that mutants replace are still there, and what they leave behind is Go.
func TestMutantsFitTheProduct(t *testing.T) {
	root, err := proc.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	for _, m := range All() {
		if names[m.Name] || m.What == "" || len(m.Edits) == 0 || len(m.Only) == 0 || m.Keys == 0 {
			t.Errorf("mutant %+v", m)
		}
		names[m.Name] = true
		files, err := m.Apply(root)
		if err != nil {
			t.Error(err)
			continue
		}
		for name, text := range files {
			if _, err := parser.ParseFile(token.NewFileSet(), name, text, parser.AllErrors); err != nil {
				t.Errorf("mutant %s: %v", m.Name, err)
			}
		}
		if again, err := Find(m.Name); err != nil || again.Name != m.Name {
			t.Errorf("find %s: %v", m.Name, err)
		}
	}
	if _, err := Find("none"); err == nil {
		t.Error("found a mutant that there is not")
	}
}
