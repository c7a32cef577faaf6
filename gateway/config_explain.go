package gateway

import (
	"fmt"
	"reflect"
)

// Explained is one row of Config.Explain.
type Explained struct {
	Setting string `json:"setting"`
	Value   string `json:"value"`
	Origin  string `json:"origin"`
	Env     string `json:"env"`
	Help    string `json:"help"`
}

// Explain lists every scalar setting with its effective value and origin.
// Passwords in the store's address are left out.
func (c *Config) Explain(origins Origins) []Explained {
	values := map[string]string{}
	var walk func(prefix string, v reflect.Value)
	walk = func(prefix string, v reflect.Value) {
		for i := range v.NumField() {
			s := settingOf(prefix, v.Type().Field(i))
			switch {
			case isScalar(s.Type):
				values[s.Key] = fmt.Sprint(v.Field(i).Interface())
			case s.Type.Kind() == reflect.Struct:
				walk(s.Key+".", v.Field(i))
			}
		}
	}
	walk("", reflect.ValueOf(*c))
	values["store"] = redactURL(c.Store)
	var rows []Explained
	for _, s := range Settings() {
		origin, set := origins[s.Key]
		if !set {
			origin = "default" // also within a section that the file has
		}
		rows = append(rows, Explained{s.Key, values[s.Key], origin, s.Env(), s.Help})
	}
	return rows
}
