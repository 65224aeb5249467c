package server

import (
	"sync"
	"time"
)

// warmAfter is when a mount looks into its root by itself: a mount that is taken away at once is spared, and most engines
// look there only after some milliseconds.
const warmAfter = 500 * time.Microsecond

// warming is the look into the root of a young mount.
type warming struct {
	timer *time.Timer
	done  sync.WaitGroup
}

// warmLater has the root's link count found out in the background. That of a merged directory takes a listing of it in all layers,
// milliseconds where there are many; all engines ask for the root's attributes first, and the listing serves their lookups
// after that.
func (s *server) warmLater() {
	s.warming.done.Add(1)
	s.warming.timer = time.AfterFunc(warmAfter, func() {
		defer s.warming.done.Done()
		if _, err := s.union.GetAttr(s.union.Root()); err != nil {
			s.log.Debug("root not looked into", "error", err)
		}
	})
}

// endWarming returns when nothing of it uses the union any more.
func (s *server) endWarming() {
	if s.warming.timer == nil {
		return
	}
	if s.warming.timer.Stop() {
		s.warming.done.Done()
	}
	s.warming.done.Wait()
}
