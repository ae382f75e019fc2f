package jsonparts_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/jsonparts"
)

// walk reads {"list": [numbers], ...} and returns the numbers, what else there was, and
// the error.
func walk(d *json.Decoder) (numbers []int, others []string, err error) {
	err = jsonparts.Object(d, func(key string) error {
		if key != "list" {
			others = append(others, key)
			return jsonparts.Skip(d)
		}
		return jsonparts.Array(d, func() error {
			var n int
			err := d.Decode(&n)
			numbers = append(numbers, n)
			return err
		})
	})
	return numbers, others, err
}

func TestWalk(t *testing.T) {
	const doc = `{"a": {"list": [9], "x": [[], {}, [{"y": null}]]}, "list": [1, 2], "b": "]", "c": 1, "list": [], "d": {}}`
	numbers, others, err := walk(json.NewDecoder(strings.NewReader(doc)))
	if got := fmt.Sprint(numbers, others, err); got != "[1 2] [a b c d] <nil>" {
		t.Error(got)
	}
	for _, broken := range []string{"", "[]", "1", "{", `{"list": 1}`, `{"list": [1`, `{"list": [1]`, `{"list": ["x"]}`, `{"a": [`, `{"a": ]}`, `{"a" 1}`, `{"list": {}}`} {
		if _, _, err := walk(json.NewDecoder(strings.NewReader(broken))); err == nil {
			t.Errorf("%q is read", broken)
		}
	}
}

// endless repeats a text, and counts what is read of it.
type endless struct {
	text string
	n    int
}

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = e.text[(e.n+i)%len(e.text)]
	}
	e.n += len(p)
	return len(p), nil
}

// Brackets without end cost memory for each: they are given up early.
func TestSkipIsBounded(t *testing.T) {
	for _, text := range []string{"[", `{"a":`} {
		r := &endless{text: text}
		if err := jsonparts.Skip(json.NewDecoder(r)); err == nil || r.n > 64<<10 {
			t.Errorf("%q: %v after %d bytes", text, err, r.n)
		}
	}
	deep := strings.Repeat("[", 1000) + strings.Repeat("]", 1000)
	if err := jsonparts.Skip(json.NewDecoder(strings.NewReader(deep))); err != nil {
		t.Error(err)
	}
}
