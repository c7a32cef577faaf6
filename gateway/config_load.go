package gateway

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/providers/structs"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"
)

// Sources says where settings come from, weakest first: defaults, the file,
// the environment, flags.
type Sources struct {
	File    string         // YAML file; empty means none
	Environ []string       // as os.Environ gives it
	Flags   *pflag.FlagSet // flags made by BindFlags; nil means none
}

// Origins remembers where each setting got its value: "site.yaml:12",
// "environment VIGIE_GATEWAY_STATE" or "flag --state".
type Origins map[string]string

// Of returns the origin of a setting, or of the closest enclosing one: where
// to look for what is wrong or missing.
func (o Origins) Of(key string) string {
	for k := key; k != ""; {
		if at, ok := o[k]; ok {
			return at
		}
		if i := strings.LastIndexAny(k, ".["); i >= 0 {
			k = k[:i]
		} else {
			k = ""
		}
	}
	return "default"
}

// Problem is one thing wrong with a configuration.
type Problem struct {
	Origin  string `json:"origin"`  // where the value came from: file:line, variable or flag
	Setting string `json:"setting"` // dotted name
	Message string `json:"message"` // what is wrong and what would be right
}

func (p Problem) String() string {
	if p.Setting == "" {
		return p.Origin + ": " + p.Message
	}
	return p.Origin + ": " + p.Setting + ": " + p.Message
}

// Problems is the error that Load returns: everything wrong at once.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, one := range p {
		lines[i] = one.String()
	}
	return strings.Join(lines, "\n")
}

// BindFlags adds one flag for every scalar setting.
func BindFlags(flags *pflag.FlagSet) {
	for _, s := range Settings() {
		if s.Type.Kind() == reflect.Bool {
			flags.Bool(s.Flag(), false, s.Help)
		} else {
			flags.String(s.Flag(), "", s.Help)
		}
		// A command may have a flag of its own with the name of a setting.
		flags.Lookup(s.Flag()).Annotations = map[string][]string{settingFlag: nil}
	}
}

// settingFlag marks the flags that BindFlags made.
const settingFlag = "vigie setting"

// Load reads the configuration from its sources and validates it. The error,
// if the settings are at fault, is Problems and lists all of them.
func Load(src Sources) (*Config, Origins, error) {
	ko := koanf.New(".")
	if err := ko.Load(structs.Provider(Default(), "koanf"), nil); err != nil {
		return nil, nil, fmt.Errorf("gateway: loading the default settings: %w", err)
	}
	origins := Origins{}
	var problems Problems

	if src.File != "" {
		tree, at, found, err := readFile(src.File)
		if err != nil {
			return nil, nil, err
		}
		problems = append(problems, found...)
		maps.Copy(origins, at)
		if err := ko.Load(loaded(tree), nil); err != nil {
			return nil, nil, fmt.Errorf("gateway: merging settings of %s: %w", src.File, err)
		}
	}

	byEnv, byFlag := map[string]Setting{}, map[string]Setting{}
	for _, s := range Settings() {
		byEnv[s.Env()] = s
		byFlag[s.Flag()] = s
	}
	take := func(s Setting, origin, value string) {
		origins[s.Key] = origin
		if err := s.check(value); err != nil {
			problems = append(problems, Problem{origin, s.Key, err.Error()})
		}
	}
	fromEnv := env.Provider(".", env.Opt{
		Prefix:      envPrefix,
		EnvironFunc: func() []string { return src.Environ },
		TransformFunc: func(name, value string) (string, any) {
			s, ok := byEnv[name]
			if !ok {
				if name != envPrefix+"CONFIG" { // read by the command line itself
					problems = append(problems, Problem{"environment " + name, "", "no such setting" + nearest(name, slices.Collect(maps.Keys(byEnv)))})
				}
				return "", nil
			}
			take(s, "environment "+name, value)
			return s.Key, value
		},
	})
	if err := ko.Load(fromEnv, nil); err != nil {
		return nil, nil, fmt.Errorf("gateway: reading settings from the environment: %w", err)
	}
	if src.Flags != nil {
		fromFlags := posflag.ProviderWithFlag(src.Flags, ".", ko, func(f *pflag.Flag) (string, any) {
			s, ok := byFlag[f.Name]
			if _, setting := f.Annotations[settingFlag]; !ok || !setting || !f.Changed {
				return "", nil
			}
			take(s, "flag --"+f.Name, f.Value.String())
			return s.Key, f.Value.String()
		})
		if err := ko.Load(fromFlags, nil); err != nil {
			return nil, nil, fmt.Errorf("gateway: reading settings from flags: %w", err)
		}
	}
	if len(problems) > 0 {
		return nil, origins, problems
	}

	var c Config
	err := ko.UnmarshalWithConf("", &c, koanf.UnmarshalConf{Tag: "koanf", DecoderConfig: &mapstructure.DecoderConfig{
		Result:           &c,
		TagName:          "koanf",
		WeaklyTypedInput: true,
		ErrorUnused:      true,
		DecodeHook: mapstructure.ComposeDecodeHookFunc(
			mapstructure.StringToTimeDurationHookFunc(),
			mapstructure.TextUnmarshallerHookFunc()),
	}})
	if err != nil {
		return nil, origins, fmt.Errorf("gateway: reading settings: %w", err)
	}
	c.complete()
	if problems := c.validate(origins); len(problems) > 0 {
		return nil, origins, problems
	}
	return &c, origins, nil
}

// complete fills what follows from other settings.
func (c *Config) complete() {
	if c.Store == "" {
		c.Store = "sqlite:" + filepath.Join(c.State, "vigie.db")
	}
	if c.Keys == "" {
		c.Keys = filepath.Join(c.State, "master.key")
	}
	for i := range c.Destinations {
		if c.Destinations[i].CallingAETitle == "" {
			c.Destinations[i].CallingAETitle = c.DIMSE.AETitle
		}
	}
}

// loaded hands an already parsed tree to koanf.
type loaded map[string]any

func (l loaded) ReadBytes() ([]byte, error)    { return nil, errors.ErrUnsupported }
func (l loaded) Read() (map[string]any, error) { return l, nil }

// readFile parses the YAML file against the schema. It returns the tree, the
// position of every key, and the problems found; an error only when the file
// cannot be read at all.
func readFile(path string) (map[string]any, Origins, Problems, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("gateway: reading the configuration file: %w", err)
	}
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		// The parser's own text quotes neighbouring lines, which may hold a
		// password; its message and line are enough.
		var syntax yaml.Error
		if errors.As(err, &syntax) {
			return nil, nil, Problems{{fmt.Sprintf("%s:%d", path, syntax.GetToken().Position.Line), "", "this is not YAML: " + syntax.GetMessage()}}, nil
		}
		return nil, nil, nil, fmt.Errorf("gateway: %s is not YAML: want settings such as `state: /var/lib/vigie`", path)
	}
	r := fileReader{path: path, dir: filepath.Dir(path), origins: Origins{}}
	tree := map[string]any{}
	for i, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		if i > 0 {
			r.problem(doc.Body, "", "a second YAML document: want exactly one")
			continue
		}
		tree = r.object(doc.Body, "", reflect.TypeFor[Config]())
	}
	return tree, r.origins, r.problems, nil
}

type fileReader struct {
	path, dir string
	origins   Origins
	problems  Problems
}

func (r *fileReader) at(n ast.Node) string {
	return fmt.Sprintf("%s:%d", r.path, n.GetToken().Position.Line)
}

func (r *fileReader) problem(n ast.Node, key, message string) {
	r.problems = append(r.problems, Problem{r.at(n), key, message})
}

func pairs(n ast.Node) ([]*ast.MappingValueNode, bool) {
	switch n := n.(type) {
	case *ast.MappingNode:
		return n.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, true
	case *ast.NullNode:
		return nil, true
	default:
		return nil, false
	}
}

func (r *fileReader) object(n ast.Node, key string, t reflect.Type) map[string]any {
	out := map[string]any{}
	fields := map[string]reflect.StructField{}
	for i := range t.NumField() {
		fields[t.Field(i).Tag.Get("koanf")] = t.Field(i)
	}
	values, ok := pairs(n)
	if !ok {
		r.problem(n, key, "want a mapping with "+strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
		return out
	}
	prefix := ""
	if key != "" {
		prefix = key + "."
	}
	for _, pair := range values {
		name := pair.Key.GetToken().Value
		field, known := fields[name]
		if !known {
			names := slices.Sorted(maps.Keys(fields))
			r.problem(pair.Key, prefix+name, "no such setting"+nearest(name, names)+"; accepted here: "+strings.Join(names, ", "))
			continue
		}
		out[name] = r.value(pair, prefix, field)
	}
	return out
}

func (r *fileReader) value(pair *ast.MappingValueNode, prefix string, field reflect.StructField) any {
	s := settingOf(prefix, field)
	r.origins[s.Key] = r.at(pair.Key)
	switch {
	case isScalar(s.Type):
		return r.scalar(pair.Value, s)
	case s.Type.Kind() == reflect.Struct:
		return r.object(pair.Value, s.Key, s.Type)
	}
	list, ok := pair.Value.(*ast.SequenceNode)
	if !ok {
		r.problem(pair.Value, s.Key, "want a list")
		return nil
	}
	items := []any{}
	for i, item := range list.Values {
		key := fmt.Sprintf("%s[%d]", s.Key, i)
		r.origins[key] = r.at(item)
		items = append(items, r.object(item, key, s.Type.Elem()))
	}
	return items
}

func (r *fileReader) scalar(n ast.Node, s Setting) any {
	var text string
	switch n := n.(type) {
	case *ast.StringNode:
		text = n.Value
	case *ast.BoolNode, *ast.IntegerNode, *ast.FloatNode:
		text = n.GetToken().Value
	default:
		r.problem(n, s.Key, "want "+s.accepted())
		return ""
	}
	if err := s.check(text); err != nil {
		r.problem(n, s.Key, err.Error())
	}
	if s.Path && text != "" && !filepath.IsAbs(text) {
		text = filepath.Join(r.dir, text)
	}
	return text
}

// nearest suggests a known name at an edit distance of at most two.
func nearest(name string, known []string) string {
	best, at := "", 3
	for _, k := range slices.Sorted(slices.Values(known)) {
		if d := distance(name, k); d < at {
			best, at = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(", did you mean %s?", best)
}

func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		previous := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := previous
			if a[i] != b[j] {
				cost = 1 + min(previous, row[j], row[j+1])
			}
			previous, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
