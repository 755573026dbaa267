package attack

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The directories that all tasks of an allocation share, and may rename.
var shared = []string{"logs", "data", "tmp"}

// trap is one exchange: what another task uses, and what is put in its place.
type trap struct{ name, lure string }

func (t trap) exchange() error {
	err := unix.Renameat2(unix.AT_FDCWD, t.name, unix.AT_FDCWD, t.lure, unix.RENAME_EXCHANGE)
	if err != nil {
		return fmt.Errorf("failed to exchange %s and %s: %w", t.name, t.lure, err)
	}
	return nil
}

// swap puts links out of the sandbox in place of what another task of the allocation uses, and back, until SIGTERM.
// It prints how often.
func swap(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("swap", flag.ContinueOnError)
	task := flags.String("task", "", "the task that is started meanwhile")
	outside := flags.String("outside", "", "a directory outside")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *task == "" || *outside == "" {
		return errors.New("-task and -outside are required")
	}
	if err := os.Chdir(os.Getenv("NOMAD_ALLOC_DIR")); err != nil {
		return err
	}
	traps, err := lay(*task, *outside)
	if err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM)
	exchanges := 0
	for {
		for _, each := range traps {
			// Twice: what was there comes back.
			for range 2 {
				if err := each.exchange(); err != nil {
					return err
				}
				exchanges++
			}
		}
		select {
		case <-stop:
			_, err := fmt.Fprintf(out, `{"exchanges": %d}`+"\n", exchanges)
			return err
		default:
		}
	}
}

// lay makes the lures: a link to the directory outside, a directory with links to its files, and for each log pipe a
// link to one outside and a file.
func lay(task, outside string) ([]trap, error) {
	const folder = "lure-folder"
	if err := os.Mkdir(folder, 0o777); err != nil {
		return nil, err
	}
	links := map[string]string{"lure": outside, folder + "/secret": outside + "/secret"}
	var traps []trap
	for _, pipe := range []string{"." + task + ".stdout.fifo", "." + task + ".stderr.fifo"} {
		links[folder+"/"+pipe] = outside + "/pipe"
		links["lure"+pipe] = outside + "/pipe"
		plain := "plain" + pipe
		if err := os.WriteFile(plain, []byte("no pipe\n"), 0o666); err != nil {
			return nil, err
		}
		traps = append(traps, trap{"logs/" + pipe, "lure" + pipe}, trap{"logs/" + pipe, plain})
	}
	for link, to := range links {
		if err := os.Symlink(to, link); err != nil {
			return nil, err
		}
	}
	for _, name := range shared {
		traps = append(traps, trap{name, "lure"}, trap{name, folder})
	}
	return traps, nil
}

// look fails if a file outside can be read by one of the names that a task has, and tries to leave a file there. Then it
// puts links out of the sandbox into its own directories, for its next start.
func look(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("look", flag.ContinueOnError)
	outside := flags.String("outside", "", "a directory outside")
	if err := flags.Parse(args); err != nil {
		return err
	}
	local, alloc := os.Getenv("NOMAD_TASK_DIR"), os.Getenv("NOMAD_ALLOC_DIR")
	own := []string{local, os.Getenv("NOMAD_SECRETS_DIR"), os.Getenv("TMPDIR")}
	dirs := append([]string{".", *outside, alloc + "/lure", alloc + "/lure-folder"}, own...)
	for _, name := range shared {
		dirs = append(dirs, filepath.Join(alloc, name))
	}
	for range 20 {
		for _, dir := range dirs {
			if err := reads(dir + "/secret"); err == nil {
				return fmt.Errorf("the secret outside can be read by %s/secret", dir)
			}
			os.WriteFile(dir+"/left", nil, 0o666)
		}
	}
	for _, dir := range own {
		os.Symlink(*outside+"/secret", dir+"/secret")
		lure := dir + "-lure"
		os.Symlink(*outside, lure)
		if err := unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, lure, unix.RENAME_EXCHANGE); err == nil {
			fmt.Fprintln(out, "exchanged", filepath.Base(dir))
		}
	}
	return nil
}
