package attack

import (
	"context"
)

// Auto is the ensemble that gives the verdict.
const Auto Name = "auto"

// The parts of the ensemble, as Croce and Hein 2020 put it together (AutoAttack,
// standard version): what one cannot, another may. Each attacks what is left.
const (
	autoGradient = 100  // steps of each Auto-PGD and of FAB
	autoQueries  = 5000 // of Square
)

// runAuto runs Auto-PGD on cross-entropy, on the difference of logits ratio
// (of two classes the margin) and towards other classes, FAB, and Square. Steps
// scales the whole: 100 is the standard.
func runAuto(ctx context.Context, k *task) error {
	share := float64(k.options.Steps) / autoGradient
	steps := func(n int) int { return max(1, int(share*float64(n))) }
	told := k.options.Progress
	parts := []func(report func(float64)) error{
		func(report func(float64)) error { return k.apgd(ctx, CrossEntropy, k.open(), nil, 0, report) },
		func(report func(float64)) error { return k.apgd(ctx, DLR, k.open(), nil, 1, report) },
		func(report func(float64)) error {
			if k.about.Classes == 2 {
				return nil // there is one other class, and it was aimed at
			}
			k.options.Progress = report
			defer func() { k.options.Progress = told }()
			return runAPGDTargeted(ctx, k)
		},
		func(report func(float64)) error {
			of := k.open()
			if err := k.fab(ctx, of, k.ball.eps, report); err != nil {
				return err
			}
			for _, j := range of { // FAB goes beyond the bound
				if k.fooled[j] && k.distance(j) > k.ball.eps {
					k.fooled[j] = false
					copy(k.found(j), k.clean(j))
				}
			}
			return nil
		},
		func(report func(float64)) error { return k.square(ctx, k.open(), steps(autoQueries), 0, report) },
	}
	for i, part := range parts {
		if len(k.open()) == 0 {
			break
		}
		report := func(done float64) {
			if told != nil {
				told((float64(i) + min(1, done)) / float64(len(parts)))
			}
		}
		if err := part(report); err != nil {
			return err
		}
	}
	k.progress(1)
	return nil
}
