package attack

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// table is nixos-tests/attacks.json, as far as it comes from the program.
func table(t *testing.T) []Attack {
	t.Helper()
	text, err := os.ReadFile("../../../../nixos-tests/attacks.json")
	if err != nil {
		t.Fatal(err)
	}
	var data struct{ Attacks []Attack }
	if err := json.Unmarshal(text, &data); err != nil {
		t.Fatal(err)
	}
	return data.Attacks
}

func TestAttacksAreThoseOfTheTable(t *testing.T) {
	known := map[string]Attack{}
	for _, attack := range table(t) {
		known[attack.Name] = attack
	}
	all := Attacks()
	for _, attack := range all {
		attack.run, attack.alone = nil, false
		if !reflect.DeepEqual(attack, known[attack.Name]) {
			t.Errorf("nixos-tests/attacks.json differs for %s; run make attacks", attack.Name)
		}
	}
	if len(all) != len(known) {
		t.Errorf("%d attacks, %d in nixos-tests/attacks.json", len(all), len(known))
	}
}

func TestNamesAreUniqueAndEachAttackCanBeRun(t *testing.T) {
	seen := map[string]bool{}
	for _, attack := range Attacks() {
		if seen[attack.Name] || !regexp.MustCompile(`^[a-z0-9-]+$`).MatchString(attack.Name) {
			t.Errorf("the name %q is taken or has other characters", attack.Name)
		}
		seen[attack.Name] = true
		if attack.run == nil || attack.Tries == "" || attack.Group == "" {
			t.Errorf("%s is not complete", attack.Name)
		}
	}
}

func TestResultsSayWhatStoppedAnAttack(t *testing.T) {
	for want, err := range map[string]error{
		"succeeded":       nil,
		"refused EACCES":  &os.PathError{Op: "open", Path: "/x", Err: unix.EACCES},
		"refused ENOENT":  fmt.Errorf("step: %w", unix.ENOENT),
		"refused hidden":  hidden,
		"absent: no disk": absent("no disk"),
		"error: broken":   errors.New("broken"),
	} {
		if got := result(err); got != want {
			t.Errorf("%v: %q, not %q", err, got, want)
		}
	}
	if err := reached(unix.EINVAL, unix.EINVAL); err != nil {
		t.Error("an error beyond the permission is a success")
	}
	if err := reached(unix.EPERM, unix.EINVAL); err == nil {
		t.Error("EPERM is none")
	}
}

func TestOneAttackFindsOnlyItsGroup(t *testing.T) {
	attacks, err := chosen("keyrings", nil)
	if err != nil || len(attacks) == 0 || attacks[0].Group != "keyrings" {
		t.Errorf("%v, %v", attacks, err)
	}
	if _, err := chosen("", []string{"nosuch"}); err == nil {
		t.Error("an unknown name is accepted")
	}
	if _, err := chosen("nosuch", nil); err == nil {
		t.Error("an unknown group is accepted")
	}
}

func TestAttacksShareAProcessInTheirGroupOnly(t *testing.T) {
	a, b := Attack{Group: "a"}, Attack{Group: "b"}
	alone := Attack{Group: "a", alone: true}
	var sizes []int
	for _, each := range batches(append([]Attack{a, alone, a, b}, slices.Repeat([]Attack{b}, batch)...)) {
		sizes = append(sizes, len(each))
	}
	if want := []int{1, 2, batch, 1}; !slices.Equal(sizes, want) {
		t.Errorf("%v, not %v", sizes, want)
	}
}

func TestABombReportsWhetherItReachedEnough(t *testing.T) {
	for until, enough := range map[string]bool{"1048576": true, "1099511627776": false} {
		err := bomb([]string{"memory", "-for", "50ms", "-until", until}, io.Discard)
		if (err == nil) != enough {
			t.Errorf("until %s: %v", until, err)
		}
	}
	held = nil
}

func TestEachTrapLeadsOutsideOrIsNoPipeAndBack(t *testing.T) {
	outside := t.TempDir()
	t.Chdir(t.TempDir())
	for _, dir := range shared {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"logs/.task.stdout.fifo", "logs/.task.stderr.fifo", outside + "/pipe"} {
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(outside+"/secret", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	traps, err := lay("task", outside)
	if err != nil || len(traps) != 4+2*len(shared) {
		t.Fatal(traps, err)
	}
	for _, each := range traps {
		before, err := os.Lstat(each.name)
		if err != nil {
			t.Fatal(err)
		}
		if err := each.exchange(); err != nil {
			t.Fatal(err)
		}
		if swapped, err := os.Lstat(each.name); err != nil || os.SameFile(before, swapped) {
			t.Errorf("%s is what it was: %v", each.name, err)
		}
		if err := each.exchange(); err != nil {
			t.Fatal(err)
		}
		if after, err := os.Lstat(each.name); err != nil || !os.SameFile(before, after) {
			t.Errorf("%s is not what it was: %v", each.name, err)
		}
	}
}
