package keys_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/vigie/vigie/keys"
)

func ExampleNewWriter() {
	key := keys.NewKey()
	var sealed bytes.Buffer
	w, err := keys.NewWriter(&sealed, key, []byte("object 2.25.1"))
	if err != nil {
		panic(err)
	}
	io.WriteString(w, "DICM…")
	if err := w.Close(); err != nil { // a stream that was not closed does not open
		panic(err)
	}
	r, err := keys.NewReader(&sealed, key, []byte("object 2.25.1"))
	if err != nil {
		panic(err)
	}
	plaintext, err := io.ReadAll(r)
	fmt.Printf("%s %v\n", plaintext, err)
	// Output: DICM… <nil>
}

func ExampleCreateFile() {
	dir, err := os.MkdirTemp("", "keys")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "keys", "master.key")
	if _, err := keys.CreateFile(path); err != nil {
		panic(err)
	}
	provider, err := keys.OpenFile(path)
	if err != nil {
		panic(err)
	}
	fmt.Println(provider.Rotate(), provider.Version())
	// Output: <nil> 2
}
