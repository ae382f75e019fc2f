package meta

import "time"

// Backup is a backup that is being taken: while it is open nothing that it may still
// read is collected as garbage.
type Backup struct {
	ID string `cbor:"1,keyasint,omitempty" json:"id"`
	// Opened is when it began. What any version used since then stays; Until is when
	// the hold ends by itself, unless it is renewed.
	Opened Time   `cbor:"2,keyasint,omitempty" json:"opened"`
	Until  Time   `cbor:"3,keyasint,omitempty" json:"until"`
	By     string `cbor:"4,keyasint,omitempty" json:"by"`
}

// Bounds of backups.
const (
	MaxBackups      = 16 // open at one time
	MaxBackupID     = 64 // bytes
	MinBackupLease  = 10 * time.Second
	MaxBackupLease  = time.Hour
	MaxRecoveryLost = 1000 // servers that one recovery leaves behind
)

// Recovery is how the present epoch began: from a backup, or from a server that
// outlived its quorum.
type Recovery struct {
	At    Time   `cbor:"1,keyasint,omitempty" json:"at"`
	First NodeID `cbor:"2,keyasint,omitempty" json:"first"` // the server that it began with
	// Index and Time are the last entry of the epoch before, and when it was written.
	// What was acknowledged later is not part of this cluster.
	Index uint64 `cbor:"3,keyasint,omitempty" json:"index"`
	Time  Time   `cbor:"4,keyasint,omitempty" json:"time"`
	// Backup is the id of the backup that was restored, "" when a quorum was lost.
	Backup string `cbor:"5,keyasint,omitempty" json:"backup,omitempty"`
	// Statement is the root's signed word on the epoch (verify/trust), which makes
	// servers of an older epoch stop. Lost are those that may still have to hear it.
	Statement []byte       `cbor:"6,keyasint,omitempty" json:"-"`
	Lost      []LostServer `cbor:"7,keyasint,omitempty" json:"lost,omitempty"`
}

// LostServer is a server of an earlier epoch that is not part of this one.
type LostServer struct {
	ID      NodeID     `cbor:"1,keyasint,omitempty" json:"id"`
	Region  RegionName `cbor:"2,keyasint,omitempty" json:"region"`
	Gateway string     `cbor:"3,keyasint,omitempty" json:"gateway"`
}
