package doctor

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// RemovedFile lies in the data directory of a node that was removed from its cluster,
// and says so.
const RemovedFile = "removed"

func membership(dir string) Finding {
	words, err := os.ReadFile(filepath.Join(dir, RemovedFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ok("nothing says that this node was removed from its cluster")
	case err != nil:
		return bad(Warn, "", "cannot tell: %v", err)
	}
	return bad(Fail, "this directory can be deleted", "%s", words)
}
