package gateway

import (
	"encoding"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// envPrefix starts every environment variable of the gateway.
const envPrefix = "VIGIE_GATEWAY_"

// Setting describes one scalar setting, read from the tags of Config.
type Setting struct {
	Key    string       // dotted name, as in the file
	Help   string       // one sentence
	Accept []string     // the only values accepted, when there is such a list
	Path   bool         // a file or folder; relative ones count from the file that names them
	Type   reflect.Type // of the field
}

// Env is the environment variable that sets it.
func (s Setting) Env() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(s.Key, ".", "_"))
}

// Flag is the command-line flag that sets it, without the dashes.
func (s Setting) Flag() string {
	return strings.NewReplacer(".", "-", "_", "-").Replace(s.Key)
}

var (
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
	durationType    = reflect.TypeFor[time.Duration]()
)

func isScalar(t reflect.Type) bool {
	return t == durationType || reflect.PointerTo(t).Implements(textUnmarshaler) ||
		t.Kind() != reflect.Struct && t.Kind() != reflect.Slice
}

func settingOf(prefix string, f reflect.StructField) Setting {
	return Setting{
		Key:    prefix + f.Tag.Get("koanf"),
		Help:   f.Tag.Get("help"),
		Accept: strings.Fields(f.Tag.Get("accept")),
		Path:   f.Tag.Get("kind") == "path",
		Type:   f.Type,
	}
}

// Settings lists every scalar setting outside lists, in the order of Config.
func Settings() []Setting {
	var out []Setting
	var walk func(prefix string, t reflect.Type)
	walk = func(prefix string, t reflect.Type) {
		for i := range t.NumField() {
			s := settingOf(prefix, t.Field(i))
			switch {
			case isScalar(s.Type):
				out = append(out, s)
			case s.Type.Kind() == reflect.Struct:
				walk(s.Key+".", s.Type)
			}
		}
	}
	walk("", reflect.TypeFor[Config]())
	return out
}

// accepted says in words what a setting takes, for error messages.
func (s Setting) accepted() string {
	switch {
	case len(s.Accept) > 0:
		return "one of " + strings.Join(s.Accept, ", ")
	case s.Type == durationType:
		return "a duration such as 30s, 5m or 1h"
	case s.Type == reflect.TypeFor[Size]():
		return "a size such as 512MiB or 2GiB"
	}
	switch s.Type.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	default:
		return "text"
	}
}

// check reports whether text is a value of the setting, with the accepted
// values in the error.
func (s Setting) check(text string) error {
	var err error
	switch {
	case s.Type == durationType:
		_, err = time.ParseDuration(text)
	case reflect.PointerTo(s.Type).Implements(textUnmarshaler):
		err = reflect.New(s.Type).Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(text))
	case s.Type.Kind() == reflect.Bool:
		if text != "true" && text != "false" {
			err = strconv.ErrSyntax
		}
	case s.Type.Kind() == reflect.Int:
		_, err = strconv.Atoi(text)
	case s.Type.Kind() == reflect.Float64:
		_, err = strconv.ParseFloat(text, 64)
	case len(s.Accept) > 0:
		err = strconv.ErrSyntax
		for _, a := range s.Accept {
			if a == text {
				err = nil
			}
		}
	}
	if err != nil {
		return fmt.Errorf("%q is not valid here: want %s", text, s.accepted())
	}
	return nil
}
