package store

import (
	"strconv"
	"strings"
)

// where collects the terms of a WHERE clause with their parameters, so that a
// filter's empty fields leave no trace in the query and indexes apply.
type where struct {
	terms []string
	args  []any
}

// add adds a term in which each ? stands for the next value.
func (w *where) add(term string, values ...any) {
	for _, value := range values {
		w.args = append(w.args, value)
		term = strings.Replace(term, "?", "$"+strconv.Itoa(len(w.args)), 1)
	}
	w.terms = append(w.terms, term)
}

// equal adds column = value unless value is empty.
func (w *where) equal(column, value string) {
	if value != "" {
		w.add(column+" = ?", value)
	}
}

// String returns the clause with a leading blank, or nothing.
func (w *where) String() string {
	if len(w.terms) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(w.terms, " AND ")
}
