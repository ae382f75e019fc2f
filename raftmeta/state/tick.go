package state

// Tick changes nothing. The leader commits one to learn how far the log is
// committed; builds that do not know a later form skip it.
type Tick struct{}

// Type implements Command.
func (Tick) Type() uint16 { return typeTick }

// Check implements Command.
func (Tick) Check() error { return nil }

func (Tick) apply(*tx) (any, error) { return nil, nil }
