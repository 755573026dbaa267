// Command gen turns the repository's .proto files into the Go code of ../pb:
//
//	cd tests/pluginhost/gen && go run .          # rewrite ../pb
//	cd tests/pluginhost/gen && go run . -check   # fail unless ../pb is up to date
//
// It needs no protoc: this process compiles the files and passes them to the
// two code generators, which are Go programs pinned in this module's go.mod.
// The module is separate so that building the host does not need it.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/pluginpb"
)

// goPackage holds all generated files: the message names of the contracts do
// not collide, and one package keeps the host's imports short.
const goPackage = "pluginhost/pb"

// generators are pinned by tools.go.
var generators = []string{
	"google.golang.org/protobuf/cmd/protoc-gen-go",
	"google.golang.org/grpc/cmd/protoc-gen-go-grpc",
}

func main() {
	root := flag.String("proto", "../../../proto", "include root of the .proto files")
	out := flag.String("out", "../pb", "directory of the generated files")
	check := flag.Bool("check", false, "write nothing; fail if the directory differs from what would be generated")
	flag.Parse()
	log.SetFlags(0)
	run := write
	if *check {
		run = verify
	}
	if err := run(*root, *out); err != nil {
		log.Fatal(err)
	}
}

// write regenerates the files in dir.
func write(root, dir string) error {
	files, err := generate(root)
	if err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// verify generates into a temporary directory and compares that with dir.
func verify(root, dir string) error {
	fresh, err := os.MkdirTemp("", "pluginhost-pb-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(fresh)
	if err := write(root, fresh); err != nil {
		return err
	}
	return compare(dir, fresh)
}

// compare returns an error that names each file of dir that is not as in fresh.
func compare(dir, fresh string) error {
	have, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	want, err := os.ReadDir(fresh)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range have {
		if !slices.ContainsFunc(want, func(w fs.DirEntry) bool { return w.Name() == e.Name() }) {
			errs = append(errs, fmt.Errorf("%s is not generated from any .proto file: remove it", filepath.Join(dir, e.Name())))
		}
	}
	for _, e := range want {
		wanted, err := os.ReadFile(filepath.Join(fresh, e.Name()))
		if err != nil {
			return err
		}
		path := filepath.Join(dir, e.Name())
		found, err := os.ReadFile(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			errs = append(errs, fmt.Errorf("%s is missing", path))
		case err != nil:
			return err
		case !bytes.Equal(found, wanted):
			errs = append(errs, fmt.Errorf("%s is out of date", path))
		}
	}
	if len(errs) > 0 {
		errs = append(errs, errors.New("regenerate: cd tests/pluginhost/gen && go run ."))
	}
	return errors.Join(errs...)
}

// generate returns the generated files by name.
func generate(root string) (map[string][]byte, error) {
	files, err := protoFiles(root)
	if err != nil {
		return nil, err
	}
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{root}}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	linked, err := compiler.Compile(context.Background(), files...)
	if err != nil {
		return nil, err
	}
	params := []string{"paths=import", "module=" + goPackage}
	for _, f := range files {
		params = append(params, "M"+f+"="+goPackage)
	}
	req := &pluginpb.CodeGeneratorRequest{FileToGenerate: files, Parameter: proto.String(strings.Join(params, ","))}
	seen := map[string]bool{}
	var add func(protoreflect.FileDescriptor)
	add = func(fd protoreflect.FileDescriptor) {
		if seen[fd.Path()] {
			return
		}
		seen[fd.Path()] = true
		for i := range fd.Imports().Len() {
			add(fd.Imports().Get(i).FileDescriptor)
		}
		req.ProtoFile = append(req.ProtoFile, protodesc.ToFileDescriptorProto(fd))
	}
	for _, f := range linked {
		add(f)
	}
	out := map[string][]byte{}
	for _, tool := range generators {
		if err := runGenerator(tool, req, out); err != nil {
			return nil, fmt.Errorf("failed to run %s: %w", tool, err)
		}
	}
	return out, nil
}

// protoFiles lists the files below root, in import notation.
func protoFiles(root string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".proto" {
			return err
		}
		rel, err := filepath.Rel(root, path)
		files = append(files, rel)
		return err
	})
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("no .proto file below %s", root)
	}
	slices.Sort(files)
	return files, err
}

// runGenerator adds one generator's files to out.
func runGenerator(tool string, req *pluginpb.CodeGeneratorRequest, out map[string][]byte) error {
	in, err := proto.Marshal(req)
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "run", tool)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
	answer, err := cmd.Output()
	if err != nil {
		return err
	}
	var resp pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(answer, &resp); err != nil {
		return err
	}
	if resp.Error != nil {
		return errors.New(resp.GetError())
	}
	for _, f := range resp.File {
		out[filepath.Base(f.GetName())] = []byte(f.GetContent())
	}
	return nil
}
