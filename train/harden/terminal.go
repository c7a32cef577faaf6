package harden

import (
	"fmt"
	"io"
	"time"

	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/job"
)

// Terminal tells a person how the job goes on, a line at a time; of the attacks,
// at most every few seconds.
func Terminal(w io.Writer) Progress {
	p := Progress{Plain: job.Terminal(w), Hardening: job.Terminal(w)}
	announce := p.Plain.Ready
	p.Plain.Ready = func(r job.Ready) {
		announce(r)
		fmt.Fprintln(w, "the network before, by the same recipe without hardening:")
	}
	again := p.Hardening.Ready
	p.Hardening.Ready = func(r job.Ready) {
		again(r)
		fmt.Fprintln(w, "hardening; withstood is by the training's own adversary, on validation images:")
	}
	p.Hardening.Epoch = epochs(w)
	p.Baseline = func(auc train.Interval, floor float64) {
		fmt.Fprintf(w, "AUC before %.4f (95 %% %.4f to %.4f): what is kept has at least %.4f\n", auc.Value, auc.Low, auc.High, floor)
	}
	var stage string
	var start, last time.Time
	p.Attack = func(current string, done float64) {
		now := time.Now()
		if current != stage {
			stage, start, last = current, now, now
		}
		if done <= 0 || done < 1 && now.Sub(last) < 5*time.Second {
			return
		}
		if last = now; done >= 1 {
			if now.Sub(start) > 5*time.Second {
				fmt.Fprintf(w, "%s: done in %s\n", stage, now.Sub(start).Round(time.Second))
			}
			return
		}
		left := time.Duration(float64(now.Sub(start)) * (1 - done) / done)
		fmt.Fprintf(w, "%s: %.0f %%, about %s left\n", stage, 100*done, left.Round(time.Second))
	}
	return p
}

// epochs tells of the epochs of a hardened run.
func epochs(w io.Writer) func(e train.Epoch, total int) {
	first := 0
	var start time.Time
	return func(e train.Epoch, total int) {
		if first == 0 { // after a resume, the first line is not epoch 1
			first, start = e.Epoch, time.Now().Add(-e.Duration)
		}
		left := time.Since(start) / time.Duration(e.Epoch-first+1) * time.Duration(total-e.Epoch)
		mark := " "
		if e.Best {
			mark = "*"
		}
		fmt.Fprintf(w, "epoch %*d/%d %s loss %.4f  validation: AUC %.5f, accuracy %.4f, withstood %.4f  (%s left)\n",
			len(fmt.Sprint(total)), e.Epoch, total, mark, e.Loss, e.ValidationAUC, e.Accuracy, e.Robust, left.Round(time.Second))
	}
}
