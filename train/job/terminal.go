package job

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vigie/vigie/train"
)

// SetSize reads a size of images: "224", or "ROWSxCOLUMNS".
func (o *Options) SetSize(text string) error {
	if text == "" {
		return nil
	}
	rows, columns, both := strings.Cut(text, "x")
	if !both {
		columns = rows
	}
	var err1, err2 error
	o.Data.Rows, err1 = strconv.Atoi(rows)
	o.Data.Columns, err2 = strconv.Atoi(columns)
	if err := errors.Join(err1, err2); err != nil || o.Data.Rows < 1 || o.Data.Columns < 1 || o.Data.Rows > 1<<14 || o.Data.Columns > 1<<14 {
		return fmt.Errorf("job: size %q: %w: want 224, or 256x192, each from 1 to %d", text, ErrAsk, 1<<14)
	}
	return nil
}

// Terminal tells a person how the job goes on, a line at a time.
func Terminal(w io.Writer) Progress {
	var start, read time.Time
	first := 0
	return Progress{
		Reading: func(done, total int) {
			if now := time.Now(); done == total || now.Sub(read) > 2*time.Second {
				fmt.Fprintf(w, "read %d of %d images\n", done, total)
				read = now
			}
		},
		Ready: func(r Ready) {
			fmt.Fprintf(w, "%d examples to train on, %d to choose by, %d to test with", r.Train, r.Validation, r.Test)
			if r.Given {
				fmt.Fprint(w, " (as the data are divided)")
			}
			var classes []string
			for c, name := range r.Classes {
				name = train.Spoken(name)
				if r.Numbered {
					name = fmt.Sprintf("%s (label %d)", name, c)
				}
				if r.Counts != nil {
					name = fmt.Sprintf("%s: %d", name, r.Counts[c])
				}
				classes = append(classes, name)
			}
			what := "classes"
			if r.Counts != nil {
				what = "training examples by class"
			}
			fmt.Fprintf(w, "; %s %s; %d numbers to train\n", what, strings.Join(classes, ", "), r.Trained)
			conflicts := 0
			for _, d := range r.Duplicates {
				if d.Conflict {
					conflicts++
				}
			}
			if len(r.Duplicates) > 0 {
				fmt.Fprintf(w, "warning: %d contents are in two splits or have two labels (%d of them), such as %s; training.json lists them\n",
					len(r.Duplicates), conflicts, strings.Join(r.Duplicates[0].Examples, " = "))
			}
			start = time.Now()
		},
		Epoch: func(e train.Epoch, total int) {
			if first == 0 { // after a resume, the first line is not epoch 1
				first = e.Epoch
				start = time.Now().Add(-e.Duration)
			}
			left := time.Since(start) / time.Duration(e.Epoch-first+1) * time.Duration(total-e.Epoch)
			mark := " "
			if e.Best {
				mark = "*"
			}
			loss := fmt.Sprintf("loss %.4f", e.Loss)
			if e.Loss == 0 { // a private run does not release it: train.History.Withheld
				loss = "loss private"
			}
			fmt.Fprintf(w, "epoch %*d/%d %s %s  validation: AUC %.5f, loss %.4f, accuracy %.4f  (%s left)\n",
				len(fmt.Sprint(total)), e.Epoch, total, mark, loss, e.ValidationAUC, e.ValidationLoss, e.Accuracy, left.Round(time.Second))
		},
	}
}

// Resume says what is left of a stopped run and gives the command that goes on
// with it. arguments are those of the process, environ its environment.
func Resume(stopped *train.Interrupted, arguments, environ []string) string {
	checkpoint := slices.ContainsFunc(arguments, func(a string) bool { return a == "--checkpoint" || a == "--checkpoint=true" })
	var words []string
	for _, variable := range environ {
		name, value, _ := strings.Cut(variable, "=")
		if strings.HasPrefix(name, EnvPrefix) {
			words = append(words, name+"="+quoted(value))
		}
	}
	for _, a := range arguments {
		words = append(words, quoted(a))
	}
	if !checkpoint && stopped.Checkpoint == "" {
		words = append(words, "--checkpoint")
	}
	command := strings.Join(words, " ")
	switch {
	case stopped.Checkpoint != "":
		return "go on from there with:\n  " + command
	case checkpoint:
		return "start again with:\n  " + command
	}
	return "start again, and with --checkpoint what is done will be kept:\n  " + command
}

// quoted is a word as a POSIX shell takes it.
func quoted(word string) string {
	safe := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./,:=@%+", r)
	}
	if word != "" && !strings.ContainsFunc(word, func(r rune) bool { return !safe(r) }) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// Write writes a report for people.
func Write(w io.Writer, r *train.Report, out string) error {
	interval := func(v train.Interval) string { return fmt.Sprintf("%.4f (95 %% %.4f to %.4f)", v.Value, v.Low, v.High) }
	var b strings.Builder
	fmt.Fprintf(&b, "%d parameters, best epoch %d of %d, seed %d\n", r.Parameters, r.History.Best, len(r.History.Epochs), r.Seed)
	fmt.Fprintf(&b, "validation AUC %s, accuracy %.4f\n", interval(r.AUC), r.Accuracy)
	if r.Bootstrap != nil && *r.Bootstrap != r.AUC {
		fmt.Fprintf(&b, "  bootstrap    %s\n", interval(*r.Bootstrap))
	}
	for c, auc := range r.ClassAUC {
		name := fmt.Sprint(c)
		if c < len(r.Classes) {
			name = r.Classes[c]
		}
		fmt.Fprintf(&b, "  %-12s %s\n", train.Spoken(name), interval(auc))
	}
	fmt.Fprintf(&b, "temperature %.3f: calibration error %.4f, was %.4f\n", r.Temperature, r.Calibration[1], r.Calibration[0])
	point := func(label string, p *train.OperatingPoint) {
		fmt.Fprintf(&b, "operating point %s%.3f: sensitivity %.3f, specificity %.3f (%s)\n", label, p.Threshold, p.Sensitivity, p.Specificity, p.Rule)
	}
	if r.Operating != nil {
		point("", r.Operating)
		point("", r.Sensitive)
	}
	for _, p := range r.ByClass {
		point("of "+train.Spoken(p.Class)+" ", &p.Operating)
	}
	if t := r.Test; t != nil {
		fmt.Fprintf(&b, "test AUC %s, accuracy %.4f, calibration error %.4f\n", interval(t.AUC), t.Accuracy, t.Calibration)
		if t.Sensitivity != nil {
			fmt.Fprintf(&b, "  at the first operating point: sensitivity %s, specificity %s\n", interval(*t.Sensitivity), interval(*t.Specificity))
		}
	}
	if r.Privacy != nil {
		if err := r.Privacy.Print(&b); err != nil {
			return err
		}
	}
	fmt.Fprintf(&b, "written to %s\n", out)
	_, err := io.WriteString(w, b.String())
	return err
}
