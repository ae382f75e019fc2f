package state

import "testing"

// levelFiveParts write the commands of level 5, done and refused, a topic each. The
// order is that of the log.
var levelFiveParts = []func(*logWriter){levelFiveAudit, levelFiveRespond, levelFiveQuotas, levelFiveRevocations, levelFiveBuckets}

// levelFive goes on from level 4 with the commands of level 5.
func levelFive(t *testing.T) []Entry { return writeLevelFive(t).entries }

func writeLevelFive(t *testing.T) *logWriter {
	l := writeLevelFour(t)
	l.add("", SetLevel{Level: 5})
	for _, part := range levelFiveParts {
		part(l)
	}
	return l
}
