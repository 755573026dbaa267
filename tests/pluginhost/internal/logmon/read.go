package logmon

import (
	"fmt"
	"io"
	"os"
)

// Chunk is a piece of a task's log and the place of the next one.
type Chunk struct {
	Data   []byte
	Index  int // number of the log file
	Offset int64
	// Done means that the task is over and the log has been read to its end.
	Done bool
}

// maxChunk bounds one answer, in bytes.
const maxChunk = 1 << 20

// Read continues from a place in the log of a task, which consists of several
// files. kind is stdout or stderr; over means that the task writes no more.
func Read(dir, task, kind string, index int, offset int64, over bool) (Chunk, error) {
	name := task + "." + kind
	for _, i := range logIndexes(dir, name) {
		if i < index {
			continue
		}
		if i > index {
			index, offset = i, 0
		}
		data, err := readFile(dir, fmt.Sprintf("%s.%d", name, i), offset)
		if err != nil {
			return Chunk{}, err
		}
		if len(data) > 0 {
			return Chunk{Data: data, Index: i, Offset: offset + int64(len(data))}, nil
		}
	}
	return Chunk{Index: index, Offset: offset, Done: over}, nil
}

func readFile(dir, name string, offset int64) ([]byte, error) {
	// The directory belongs to the task: never follow a link that it left there.
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.NewSectionReader(f, offset, maxChunk))
}
