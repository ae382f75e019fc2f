package state

import (
	"encoding/binary"
	"fmt"
	"reflect"

	"github.com/shoal-registry/shoal/raftmeta/audit"
	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// MaxCommandBytes bounds an encoded command: only pointers enter the log.
const MaxCommandBytes = 64 << 10

// Command is one change of the state. Each has a file: struct, number, Check,
// apply.
type Command interface {
	// Type is the command's number, for ever.
	Type() uint16
	// Check validates without the state. Errors: meta.ErrInvalid.
	Check() error
	// apply changes the state through t and returns the result of the command. It
	// is deterministic: the same on every replica. A refusal is an error of a meta
	// kind and leaves nothing behind.
	apply(t *tx) (any, error)
}

// newer is a command some of whose fields are younger than the command itself. A
// build that does not know a field skips it, and would come to another state than
// one that does: with such a field set the command is of that field's level.
type newer interface {
	// since is the cluster level from which this very command may enter the log, 0
	// when all of it is as old as its type.
	since() uint32
}

// Origin says where a command came from; it travels in the envelope.
type Origin struct {
	RequestID string      `cbor:"1,keyasint,omitempty"` // makes a retry safe, at most 128 bytes
	Principal string      `cbor:"2,keyasint,omitempty"`
	TokenID   string      `cbor:"3,keyasint,omitempty"`
	Node      meta.NodeID `cbor:"4,keyasint,omitempty"`
	Source    string      `cbor:"5,keyasint,omitempty"` // client address
	Trace     string      `cbor:"6,keyasint,omitempty"` // W3C traceparent
	Time      meta.Time   `cbor:"7,keyasint,omitempty"` // stamped by the leader
	// Elevation is the break-glass elevation whose right the call used, "" for none.
	Elevation string `cbor:"8,keyasint,omitempty"`
}

// Numbers of commands.
const (
	typeTick             = 1
	typeBootstrap        = 2
	typeSetLevel         = 3
	typeCreateTenant     = 10
	typeCreateRepository = 11
	typeSetRepository    = 12
	typeRemoveRepository = 13
	typeLinkBlob         = 20
	typeMountBlob        = 21
	typeUnlinkBlob       = 22
	typeExpireUploads    = 23
	typeStageReferences  = 24
	typePublish          = 30
	typeMoveAlias        = 31
	typeDeleteAlias      = 32
	typeDeleteVersion    = 33
	typeSetLabels        = 34
	typeAdmitNode        = 40
	typeUpdateNode       = 41
	typeRemoveNode       = 42
	typeCreateJoinToken  = 43
	typePutRegion        = 44
	typeSealRootKey      = 45
	typeRemoveRegion     = 46
	typeDrainServer      = 47
	typeLeaveRegion      = 48
	typeHoldLevel        = 49
	typeCompareState     = 94
	typeReportState      = 95
	typeBeginRotation    = 150
	typeConfirmRoot      = 151
	typeFinishRotation   = 152
	typeSealNextKey      = 153
	typeRevokeJoinToken  = 154
	typeReportReplicas   = 50
	typeDemandReplica    = 51
	typeSettleDemands    = 52
	typeDemandBlobs      = 53
	typeSetTenant        = 54
	typeRequestAudit     = 55
	typeReportAudit      = 56
	typeCreateWave       = 60
	typeCancelWave       = 61
	typeAdmitHosts       = 62
	typeReportHosts      = 63
	typeEndWave          = 64
	typeForgetWaves      = 65
	typeHoldBackup       = 80
	typeCloseBackup      = 81
	typeBeginEpoch       = 82
	typeSetRegionHealth  = 70
	typeReportBlobs      = 71
	typeReportChecked    = 72
	typeCollectBlobs     = 90
	typeSettleCollected  = 91
	typeCollectStrays    = 92
	typeSetGC            = 93
	typeRevokeCredential = 120
	typeRevokePrincipal  = 121
	typeRevokeTenant     = 122
	typeNarrowNode       = 123
	typeRecountUsage     = 140
	typeReserveStorage   = 141
	typeReportEgress     = 142
	// Of level 5: 100 accounts, 110 credentials, 120 revocation, 125 audit, 130
	// compromise, 140 quotas, 150 nodes, 155 storage.

	typeOpenCompromise     = 130
	typeAdvanceCompromise  = 131
	typeCloseCompromise    = 132
	typeQuarantineVersion  = 133
	typeReleaseVersion     = 134
	typeReportRecheck      = 135
	typeRequestElevation   = 136
	typeDecideElevation    = 137
	typeExpireElevations   = 138
	typeSetElevationPolicy = 139

	typeAttachBucket = 155

	// Of level 6: 160 packages and groups, 165 promotion.

	typeMarkVersions   = 160
	typeCloseVersion   = 161
	typeRememberSource = 162
	typePromote        = 165

	// Of level 6: 180 publications.
	typeOpenSets    = 180
	typeLeaseSets   = 181
	typeCommitSets  = 182
	typeSealSetsKey = 183
)

// Level is the highest cluster level that this build knows.
const Level uint32 = 6

// kind is what the machine knows of a command's type.
type kind struct {
	name string
	// level is the cluster level from which the command may enter the log; 0 also
	// before Bootstrap.
	level uint32
	// ignorable lets a build that does not know the type skip it.
	ignorable bool
	decode    func(body []byte) (Command, error)
	// result decodes the result of the command.
	result func(b []byte) (any, error)
}

// none is the result of a command that has nothing to say.
type none struct{}

// kindOf describes command C with result R.
func kindOf[C Command, R any](level uint32) kind {
	return kind{
		name:  reflect.TypeFor[C]().Name(),
		level: level,
		decode: func(body []byte) (Command, error) {
			var c C
			err := codec.Unmarshal(body, &c)
			return c, err
		},
		result: func(b []byte) (any, error) {
			var r R
			if _, empty := any(r).(none); empty {
				return nil, nil
			}
			err := codec.Unmarshal(b, &r)
			return r, err
		},
	}
}

func ignorable(k kind) kind {
	k.ignorable = true
	return k
}

var kinds = map[uint16]kind{
	typeBeginRotation:   kindOf[BeginRotation, meta.Trust](rotationLevel),
	typeConfirmRoot:     kindOf[ConfirmRoot, none](rotationLevel),
	typeFinishRotation:  kindOf[FinishRotation, meta.Cluster](rotationLevel),
	typeSealNextKey:     kindOf[SealNextKey, none](rotationLevel),
	typeRevokeJoinToken: kindOf[RevokeJoinToken, none](rotationLevel),

	typeTick:             ignorable(kindOf[Tick, none](0)),
	typeBootstrap:        kindOf[Bootstrap, meta.Cluster](0),
	typeSetLevel:         kindOf[SetLevel, none](1),
	typeCreateTenant:     kindOf[CreateTenant, meta.Tenant](1),
	typeCreateRepository: kindOf[CreateRepository, meta.Repository](1),
	typeSetRepository:    kindOf[SetRepository, meta.Repository](1),
	typeRemoveRepository: kindOf[RemoveRepository, RepositoryRemoved](1),
	typeLinkBlob:         kindOf[LinkBlob, meta.Blob](1),
	typeMountBlob:        kindOf[MountBlob, meta.Blob](1),
	typeUnlinkBlob:       kindOf[UnlinkBlob, none](1),
	typeExpireUploads:    kindOf[ExpireUploads, ExpireResult](1),
	typeStageReferences:  kindOf[StageReferences, none](1),
	typePublish:          kindOf[Publish, PublishResult](1),
	typeMoveAlias:        kindOf[MoveAlias, meta.Alias](1),
	typeDeleteAlias:      kindOf[DeleteAlias, none](1),
	typeDeleteVersion:    kindOf[DeleteVersion, none](1),
	typeSetLabels:        kindOf[SetLabels, none](1),
	typeAdmitNode:        kindOf[AdmitNode, meta.Node](1),
	typeUpdateNode:       kindOf[UpdateNode, meta.Node](1),
	typeRemoveNode:       kindOf[RemoveNode, none](1),
	typeCreateJoinToken:  kindOf[CreateJoinToken, none](1),
	typePutRegion:        kindOf[PutRegion, meta.Region](1),
	typeSealRootKey:      kindOf[SealRootKey, none](1),
	typeRemoveRegion:     kindOf[RemoveRegion, RemovedRegion](4),
	typeDrainServer:      kindOf[DrainServer, meta.Node](4),
	typeLeaveRegion:      kindOf[LeaveRegion, meta.Region](4),
	typeHoldLevel:        kindOf[HoldLevel, none](4),
	typeAttachBucket:     kindOf[AttachBucket, meta.Bucket](5),
	typeReportReplicas:   kindOf[ReportReplicas, none](1),
	typeDemandReplica:    kindOf[DemandReplica, meta.Replica](1),
	typeCreateWave:       kindOf[CreateWave, meta.Wave](2),
	typeCancelWave:       kindOf[CancelWave, meta.Wave](2),
	typeAdmitHosts:       kindOf[AdmitHosts, none](2),
	typeReportHosts:      kindOf[ReportHosts, none](2),
	typeEndWave:          kindOf[EndWave, none](2),
	typeForgetWaves:      kindOf[ForgetWaves, ForgetResult](2),
	typeSettleDemands:    kindOf[SettleDemands, SettleResult](settleLevel),
	typeHoldBackup:       kindOf[HoldBackup, meta.Backup](4),
	typeCloseBackup:      kindOf[CloseBackup, none](4),
	typeBeginEpoch:       kindOf[BeginEpoch, meta.Cluster](4),
	typeDemandBlobs:      kindOf[DemandBlobs, none](backlogLevel),
	typeSetTenant:        kindOf[SetTenant, meta.Tenant](backlogLevel),
	typeRequestAudit:     kindOf[RequestAudit, meta.AuditRequest](4),
	typeReportAudit:      kindOf[ReportAudit, none](4),
	typeSetRegionHealth:  kindOf[SetRegionHealth, meta.RegionHealth](healthLevel),
	typeReportBlobs:      kindOf[ReportBlobs, none](healthLevel),
	typeReportChecked:    kindOf[ReportChecked, none](healthLevel),
	typeCollectBlobs:     kindOf[CollectBlobs, CollectResult](GCLevel),
	typeCompareState:     kindOf[CompareState, none](4),
	typeReportState:      kindOf[ReportState, none](4),
	typeSettleCollected:  kindOf[SettleCollected, none](GCLevel),
	typeCollectStrays:    kindOf[CollectStrays, StraysResult](GCLevel),
	typeSetGC:            kindOf[SetGC, GCSettings](GCLevel),
	typeRevokeCredential: kindOf[RevokeCredential, meta.Credential](rightsLevel),
	typePutCheckpoint:    kindOf[PutCheckpoint, none](AuditLevel),
	typeAnchorChains:     kindOf[AnchorChains, none](AuditLevel),
	typeSetRetention:     kindOf[SetAuditRetention, audit.Retention](AuditLevel),
	typePruneEntries:     kindOf[PruneEntries, audit.Retention](AuditLevel),
	typeRevokePrincipal:  kindOf[RevokePrincipal, meta.Revocation](rightsLevel),
	typeRevokeTenant:     kindOf[RevokeTenant, meta.Revocation](rightsLevel),
	typeNarrowNode:       kindOf[NarrowNode, meta.Node](rightsLevel),

	typeCreateAccount: kindOf[CreateAccount, meta.Account](accessLevel),
	typeSetAccount:    kindOf[SetAccount, meta.Account](accessLevel),
	typeRemoveAccount: kindOf[RemoveAccount, none](accessLevel),
	typePutRole:       kindOf[PutRole, meta.AccessRole](accessLevel),
	typeRemoveRole:    kindOf[RemoveRole, none](accessLevel),
	typeAddBinding:    kindOf[AddBinding, meta.Binding](accessLevel),
	typeRemoveBinding: kindOf[RemoveBinding, none](accessLevel),

	typeSetPassword:       kindOf[SetPassword, meta.Account](credentialLevel),
	typeRotateCredential:  kindOf[RotateCredential, meta.Credential](credentialLevel),
	typeCreateCredential:  kindOf[CreateCredential, meta.Credential](credentialLevel),
	typePutIssuer:         kindOf[PutIssuer, meta.Issuer](credentialLevel),
	typeTouchCredentials:  kindOf[TouchCredentials, none](credentialLevel),
	typeExpireCredentials: kindOf[ExpireCredentials, ExpiredCredentials](credentialLevel),
	typeRemoveIssuer:      kindOf[RemoveIssuer, none](credentialLevel),
	typeSetIssuerKeys:     kindOf[SetIssuerKeys, none](credentialLevel),
	typeRecountUsage:      kindOf[RecountUsage, RecountResult](quotaLevel),
	typeReserveStorage:    kindOf[ReserveStorage, Reservations](quotaLevel),
	typeReportEgress:      kindOf[ReportEgress, none](quotaLevel),

	typeOpenCompromise:     kindOf[OpenCompromise, meta.Compromise](respondLevel),
	typeAdvanceCompromise:  kindOf[AdvanceCompromise, meta.Compromise](respondLevel),
	typeCloseCompromise:    kindOf[CloseCompromise, meta.Compromise](respondLevel),
	typeQuarantineVersion:  kindOf[QuarantineVersion, meta.Version](respondLevel),
	typeReleaseVersion:     kindOf[ReleaseVersion, meta.Version](respondLevel),
	typeReportRecheck:      kindOf[ReportRecheck, meta.Compromise](respondLevel),
	typeRequestElevation:   kindOf[RequestElevation, meta.Elevation](respondLevel),
	typeDecideElevation:    kindOf[DecideElevation, meta.Elevation](respondLevel),
	typeExpireElevations:   kindOf[ExpireElevations, none](respondLevel),
	typeSetElevationPolicy: kindOf[SetElevationPolicy, meta.ElevationPolicy](respondLevel),

	typeMarkVersions:   kindOf[MarkVersions, Marked](packagesLevel),
	typeCloseVersion:   kindOf[CloseVersion, meta.Version](packagesLevel),
	typeRememberSource: kindOf[RememberSource, Source](packagesLevel),
	typePromote:        kindOf[Promote, Promoted](packagesLevel),

	typeRecordFetched: kindOf[RecordFetched, meta.Fetched](proxyLevel),
	typeForgetFetched: kindOf[ForgetFetched, ForgottenFetched](proxyLevel),
	typePutSealed:     kindOf[PutSealed, meta.Sealed](proxyLevel),
	typeSealSecret:    kindOf[SealSecret, none](proxyLevel),
	typeRemoveSealed:  kindOf[RemoveSealed, none](proxyLevel),

	typeOpenSets:    kindOf[OpenSets, meta.Sets](SetsLevel),
	typeLeaseSets:   kindOf[LeaseSets, meta.Sets](SetsLevel),
	typeCommitSets:  kindOf[CommitSets, none](SetsLevel),
	typeSealSetsKey: kindOf[SealSetsKey, none](SetsLevel),
}

// Name returns the name of c's type, for messages.
func Name(c Command) string { return kinds[c.Type()].name }

// CheckLevel refuses a command that a cluster at this level must not have in its
// log: an older member would stop at it. The proposer asks before it proposes.
//
// Errors: meta.ErrConflict.
func CheckLevel(c Command, level uint32) error {
	k := kinds[c.Type()]
	if n, ok := c.(newer); ok {
		k.level = max(k.level, n.since())
	}
	return checkLevel(k, level)
}

func checkLevel(k kind, level uint32) error {
	switch {
	case k.level <= level:
		return nil
	case level == 0:
		return fmt.Errorf("%s: the cluster is not bootstrapped: %w", k.name, meta.ErrConflict)
	}
	return fmt.Errorf("%s needs cluster level %d, the cluster is at %d; update all servers, then raise it: %w",
		k.name, k.level, level, meta.ErrConflict)
}

// The envelope: format u8, type u16 big-endian, flags u8, then the origin as a
// frame, then the body; origin and body are codec encodings.
const (
	commandFormat  = 1
	flagIgnorable  = 1
	commandHeader  = 4
	maxOriginBytes = 4 << 10
)

// Encode checks c and returns it in its envelope, at most MaxCommandBytes.
//
// Errors: of Check; meta.ErrTooLarge; meta.ErrInvalid when the origin is too long.
func Encode(o Origin, c Command) ([]byte, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	k, ok := kinds[c.Type()]
	if !ok {
		return nil, fmt.Errorf("command type %d is not registered: %w", c.Type(), meta.ErrInvalid)
	}
	origin, err := codec.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", k.name, err, meta.ErrInvalid)
	}
	if len(origin) > maxOriginBytes || len(o.RequestID) > maxRequestIDBytes {
		return nil, fmt.Errorf("%s: the origin of %d bytes is over the limit of %d: %w", k.name, len(origin), maxOriginBytes, meta.ErrInvalid)
	}
	body, err := codec.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", k.name, err, meta.ErrInvalid)
	}
	b := make([]byte, 0, commandHeader+3+len(origin)+len(body))
	b = append(b, commandFormat)
	b = binary.BigEndian.AppendUint16(b, c.Type())
	var flags byte
	if k.ignorable {
		flags |= flagIgnorable
	}
	b = append(b, flags)
	b = codec.AppendFrame(b, origin)
	b = append(b, body...)
	if len(b) > MaxCommandBytes {
		return nil, fmt.Errorf("%s of %d bytes is over the limit of %d: %w", k.name, len(b), MaxCommandBytes, meta.ErrTooLarge)
	}
	return b, nil
}

// UnknownTypeError says that a log holds a command from a newer build, or none of
// ours: the node must stop, for it cannot know the state after it.
type UnknownTypeError struct {
	Format byte
	Type   uint16
}

func (e *UnknownTypeError) Error() string {
	return fmt.Sprintf("command of format %d and type %d is unknown to this build; update it", e.Format, e.Type)
}

// UnknownLevelError says that the cluster is, or is to be, at a level that this build
// does not know: the node must stop, as with an unknown type.
type UnknownLevelError struct{ Level uint32 }

func (e *UnknownLevelError) Error() string {
	return fmt.Sprintf("the cluster is at level %d and this build knows levels up to %d; update it", e.Level, Level)
}

// Decode reads what Encode wrote. An ignorable command of an unknown type is nil.
//
// Errors: *UnknownTypeError; meta.ErrInvalid for bytes that are no command.
func Decode(b []byte) (Origin, Command, error) {
	o, number, body, err := openEnvelope(b)
	if err != nil {
		return o, nil, err
	}
	k, known := kinds[number]
	if !known {
		return o, nil, nil
	}
	c, err := k.decode(body)
	if err != nil {
		return o, nil, fmt.Errorf("%s: %w: %w", k.name, err, meta.ErrInvalid)
	}
	return o, c, nil
}

// openEnvelope reads the envelope.
func openEnvelope(b []byte) (o Origin, number uint16, body []byte, err error) {
	if len(b) < commandHeader || len(b) > MaxCommandBytes {
		return o, 0, nil, fmt.Errorf("a command of %d bytes: %w", len(b), meta.ErrInvalid)
	}
	format, number, flags := b[0], binary.BigEndian.Uint16(b[1:]), b[3]
	if _, known := kinds[number]; format != commandFormat || (!known && flags&flagIgnorable == 0) {
		return o, 0, nil, &UnknownTypeError{Format: format, Type: number}
	}
	rest := b[commandHeader:]
	size, n := binary.Uvarint(rest)
	if n <= 0 || size > maxOriginBytes || size > uint64(len(rest)-n) {
		return o, 0, nil, fmt.Errorf("the origin of command type %d is cut off: %w", number, meta.ErrInvalid)
	}
	if err := codec.Unmarshal(rest[n:n+int(size)], &o); err != nil {
		return o, 0, nil, fmt.Errorf("the origin of command type %d: %w: %w", number, err, meta.ErrInvalid)
	}
	return o, number, rest[n+int(size):], nil
}
