package job

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/spf13/pflag"
)

// EnvPrefix starts the environment variables of a job: the flag --batch is
// VIGIE_TRAIN_BATCH.
const EnvPrefix = "VIGIE_TRAIN_"

// maxSettings bounds the size of a settings file in bytes.
const maxSettings = 1 << 20

// Settings gives flags that the command line does not set the values of the
// environment or, failing that, of a YAML file whose keys are the flags' names.
// Every mistake is named at once with its place.
func Settings(flags *pflag.FlagSet, file string, environ []string) error {
	var problems []error
	set := func(name, value, place string) {
		f := flags.Lookup(name)
		if f == nil {
			problems = append(problems, fmt.Errorf("%s: there is no such setting", place))
			return
		}
		if f.Changed {
			return
		}
		if err := flags.Set(name, value); err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", place, err))
		}
	}
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if key, ok := strings.CutPrefix(name, EnvPrefix); ok && key != "CONFIG" {
			set(strings.ReplaceAll(strings.ToLower(key), "_", "-"), value, "environment "+name)
		}
	}
	if file != "" {
		values, err := readSettings(file)
		if err != nil {
			return err
		}
		for _, v := range values {
			set(v.name, v.value, file+": "+v.name)
		}
	}
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("job: the settings are not usable:\n%w", err)
	}
	return nil
}

type setting struct{ name, value string }

// readSettings reads a flat YAML file; a list becomes its elements with commas.
func readSettings(path string) ([]setting, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("job: reading settings: %w", err)
	}
	if info.Size() > maxSettings {
		return nil, fmt.Errorf("job: reading settings: %s has %d bytes, more than %d", path, info.Size(), maxSettings)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("job: reading settings: %w", err)
	}
	var tree map[string]any
	if err := yaml.Unmarshal(data, &tree); err != nil {
		return nil, fmt.Errorf("job: reading settings: %s: %w", path, err)
	}
	var out []setting
	for _, name := range slices.Sorted(maps.Keys(tree)) {
		switch v := tree[name].(type) {
		case []any:
			var parts []string
			for _, e := range v {
				parts = append(parts, fmt.Sprint(e))
			}
			out = append(out, setting{name, strings.Join(parts, ",")})
		case map[string]any, nil:
			return nil, fmt.Errorf("job: reading settings: %s: %s: want one value or a list", path, name)
		default:
			out = append(out, setting{name, fmt.Sprint(v)})
		}
	}
	return out, nil
}
