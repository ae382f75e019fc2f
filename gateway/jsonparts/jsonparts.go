// Package jsonparts reads a JSON document part by part, so that a long one of a foreign
// registry is never in memory as a whole. Object and Array call back at each part, which
// the callback reads, with Decode, Skip or one of the two again:
//
//	d := json.NewDecoder(io.LimitReader(r, most))
//	err := jsonparts.Object(d, func(key string) error {
//		if key != "files" {
//			return jsonparts.Skip(d)
//		}
//		return jsonparts.Array(d, func() error { return d.Decode(&file) })
//	})
//
// The caller bounds the document's length. The package starts no goroutines.
package jsonparts

import (
	"encoding/json"
	"errors"
	"fmt"
)

// maxDepth bounds how deep a value that is skipped may be nested: the decoder keeps eight
// bytes for each level, of a document that may be all brackets.
const maxDepth = 1000

// Object reads an object and calls value at each key's value, which it has to read.
//
// Errors: when there is no object; of value; of the decoder.
func Object(d *json.Decoder, value func(key string) error) error {
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.Join(errors.New("no object"), err)
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		key, _ := t.(string)
		if err := value(key); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

// Array reads a list and calls element at each of its elements, which it has to read.
//
// Errors: when there is no list; of element; of the decoder.
func Array(d *json.Decoder, element func() error) error {
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return errors.Join(errors.New("no list"), err)
	}
	for d.More() {
		if err := element(); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

// Skip reads a value without keeping it.
//
// Errors: when it is nested deeper than 1000 levels; of the decoder.
func Skip(d *json.Decoder) error {
	for depth := 0; ; {
		t, err := d.Token()
		if err != nil {
			return err
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			if depth++; depth > maxDepth {
				return fmt.Errorf("it is nested deeper than %d levels", maxDepth)
			}
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return nil
		}
	}
}
