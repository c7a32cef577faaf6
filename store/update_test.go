package store_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vigie/vigie/store"
	"github.com/vigie/vigie/store/storetest"
)

func put(name string) func(*store.Tx) error {
	return func(tx *store.Tx) error { return tx.PutSetting(name, []byte(name)) }
}

func present(t *testing.T, s *store.Store, name string) bool {
	t.Helper()
	err := s.View(context.Background(), func(tx *store.Tx) error {
		_, err := tx.Setting(name)
		return err
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	return err == nil
}

// TestEachClosureOfASharedCommitHasItsOwnOutcome runs closures that succeed,
// fail, fail in the database and panic, all at once, and finds of each what it
// reported and nothing else.
func TestEachClosureOfASharedCommitHasItsOwnOutcome(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		ctx := context.Background()
		mine := errors.New("my own error")
		var wait sync.WaitGroup
		hold := make(chan struct{})
		wait.Go(func() { // everybody queues behind this one and then shares commits
			s.Update(ctx, func(*store.Tx) error { <-hold; return nil })
		})
		for i := range 200 {
			name := fmt.Sprint(i)
			wait.Go(func() {
				switch i % 4 {
				case 0:
					if err := s.Update(ctx, put(name)); err != nil {
						t.Errorf("closure %d: %v", i, err)
					}
				case 1:
					err := s.Update(ctx, func(tx *store.Tx) error {
						if err := put(name)(tx); err != nil {
							return err
						}
						return mine
					})
					if err != mine {
						t.Errorf("closure %d: %v, want its own error as it was", i, err)
					}
				case 2:
					err := s.Update(ctx, func(tx *store.Tx) error {
						if err := put(name)(tx); err != nil {
							return err
						}
						_, err := tx.Exec("INSERT INTO nowhere VALUES (1)")
						return err
					})
					if err == nil || store.OutOfResources(err) {
						t.Errorf("closure %d: %v", i, err)
					}
				case 3:
					func() {
						defer func() {
							if recovered := recover(); recovered != "panic "+name {
								t.Errorf("closure %d: recovered %v", i, recovered)
							}
						}()
						s.Update(ctx, func(tx *store.Tx) error {
							if err := put(name)(tx); err != nil {
								t.Error(err)
							}
							panic("panic " + name)
						})
					}()
				}
			})
		}
		time.Sleep(20 * time.Millisecond)
		close(hold)
		wait.Wait()
		for i := range 200 {
			if got, want := present(t, s, fmt.Sprint(i)), i%4 == 0; got != want {
				t.Errorf("closure %d left its row: %v, want %v", i, got, want)
			}
		}
	})
}

func TestAHiddenStatementErrorDoesNotCommit(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		if s.Database() == "sqlite" {
			t.Skip("SQLite undoes only the failed statement, and the closure may go on")
		}
		hold, started := make(chan struct{}), make(chan struct{})
		var wait sync.WaitGroup
		wait.Go(func() {
			s.Update(context.Background(), func(tx *store.Tx) error { close(started); <-hold; return put("first")(tx) })
		})
		<-started
		wait.Go(func() {
			err := s.Update(context.Background(), func(tx *store.Tx) error {
				tx.Exec("INSERT INTO nowhere VALUES (1)")
				return nil
			})
			if err == nil {
				t.Error("the closure that hid an error was told that it succeeded")
			}
		})
		time.Sleep(20 * time.Millisecond)
		close(hold)
		wait.Wait()
		if !present(t, s, "first") {
			t.Error("it took another closure with it")
		}
	})
}

func TestAGoroutineThatEndsInsideUpdateStopsNobody(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		var wait sync.WaitGroup
		wait.Go(func() {
			s.Update(context.Background(), func(tx *store.Tx) error {
				put("ended")(tx)
				runtime.Goexit()
				return nil
			})
		})
		wait.Wait()
		if err := s.Update(context.Background(), put("next")); err != nil {
			t.Fatal(err)
		}
		if present(t, s, "ended") || !present(t, s, "next") {
			t.Error("the wrong row is there")
		}
	})
}

func TestACallerCanLeaveTheQueueButNotItsTurn(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		hold, started := make(chan struct{}), make(chan struct{})
		var wait sync.WaitGroup
		ctx, cancel := context.WithCancel(context.Background())
		wait.Go(func() {
			err := s.Update(ctx, func(tx *store.Tx) error {
				close(started)
				<-hold
				return put("had its turn")(tx) // ctx has ended by now
			})
			if err != nil {
				t.Errorf("a closure that had its turn: %v", err)
			}
		})
		<-started
		left := make(chan error, 1)
		go func() { left <- s.Update(ctx, put("left")) }()
		time.Sleep(20 * time.Millisecond) // so that it waits in the queue, most of the time
		cancel()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("a caller that left: %v", err)
		}
		close(hold)
		wait.Wait()
		if err := s.Update(ctx, put("left")); !errors.Is(err, context.Canceled) {
			t.Errorf("a caller whose time is over before it begins: %v", err)
		}
		if !present(t, s, "had its turn") || present(t, s, "left") {
			t.Error("the wrong row is there")
		}
	})
}

func TestATransactionIsUselessAfterItsFunction(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		var leaked *store.Tx
		if err := s.Update(context.Background(), func(tx *store.Tx) error { leaked = tx; return nil }); err != nil {
			t.Fatal(err)
		}
		if err := put("late")(leaked); err == nil {
			t.Error("a statement was accepted")
		}
		if present(t, s, "late") {
			t.Error("and kept")
		}
	})
}

func TestAViewCannotWriteAndSeesOneState(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		ctx := context.Background()
		if err := s.View(ctx, put("written")); err == nil {
			t.Error("a view wrote")
		}
		err := s.View(ctx, func(tx *store.Tx) error {
			if _, err := tx.Setting("later"); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("before: %v", err)
			}
			if err := s.Update(ctx, put("later")); err != nil { // views do not wait for writers, nor the reverse
				return err
			}
			if _, err := tx.Setting("later"); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("a view saw what was committed after it began: %v", err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestNoUpdateIsLostAmongManyWriters(t *testing.T) {
	storetest.EachConfig(t, func(t *testing.T, config store.Config) {
		ctx := context.Background()
		// Two stores stand for two processes.
		stores := []*store.Store{storetest.Reopen(t, config), storetest.Reopen(t, config)}
		err := stores[0].Update(ctx, func(tx *store.Tx) error {
			_, err := tx.Exec("CREATE TABLE counter (n BIGINT NOT NULL)")
			if err == nil {
				_, err = tx.Exec("INSERT INTO counter VALUES (0)")
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		const writers, rounds = 16, 25
		var wait sync.WaitGroup
		var runs atomic.Int64
		for i := range writers {
			wait.Go(func() {
				for range rounds {
					err := stores[i%2].Update(ctx, func(tx *store.Tx) error {
						runs.Add(1)
						var n int64 // read, then write: lost unless writers take turns
						if err := tx.QueryRow([]any{&n}, "SELECT n FROM counter"); err != nil {
							return err
						}
						_, err := tx.Exec("UPDATE counter SET n = $1", n+1)
						return err
					})
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wait.Wait()
		var n int64
		err = stores[1].View(ctx, func(tx *store.Tx) error { return tx.QueryRow([]any{&n}, "SELECT n FROM counter") })
		if err != nil || n != writers*rounds {
			t.Errorf("the counter is %d after %d updates (%d runs): %v", n, writers*rounds, runs.Load(), err)
		}
	})
}

func TestAClosedStoreSaysSo(t *testing.T) {
	storetest.EachConfig(t, func(t *testing.T, config store.Config) {
		s, err := store.Open(context.Background(), config)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.Update(context.Background(), put("x")); !errors.Is(err, store.ErrClosed) {
			t.Errorf("Update: %v", err)
		}
		if err := s.View(context.Background(), put("x")); !errors.Is(err, store.ErrClosed) {
			t.Errorf("View: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
}

func TestAStoreOpenedAgainHoldsWhatWasCommitted(t *testing.T) {
	storetest.EachConfig(t, func(t *testing.T, config store.Config) {
		first, err := store.Open(context.Background(), config)
		if err != nil {
			t.Fatal(err)
		}
		if err := first.Update(context.Background(), put("kept")); err != nil {
			t.Fatal(err)
		}
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		if !present(t, storetest.Reopen(t, config), "kept") {
			t.Error("it is gone")
		}
	})
}

func TestAnUnknownDatabaseIsRefusedWithWhatToWrite(t *testing.T) {
	for _, url := range []string{"", "vigie.db", "mysql://h/d", "sqlite:", "sqlite::memory:", "sqlite:/a?b=c"} {
		if _, err := store.Open(context.Background(), store.Config{URL: url}); err == nil {
			t.Errorf("%q was opened", url)
		}
	}
}
