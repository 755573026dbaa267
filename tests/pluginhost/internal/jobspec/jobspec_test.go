package jobspec

import (
	"reflect"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
)

const fullJob = `
variable "who" { default = "world" }
variable "n" {
  type    = number
  default = 3
}
variable "list" {
  type    = list(string)
  default = ["a"]
}
locals { greeting = "hello ${var.who}" }

job "demo" {
  type = "batch"
  meta { owner = "ops" }
  constraint {
    attribute = "${attr.kernel.name}"
    value     = "linux"
  }
  group "g" {
    count = 2
    network {
      mode = "bridge"
      port "http" { to = 8080 }
      port "fixed" { static = 99 }
    }
    restart {
      attempts = 2
      delay    = "1s"
      mode     = "fail"
    }
    service {
      name = "x"
      port = "http"
      check {
        type = "tcp"
      }
    }
    task "t" {
      driver       = "exec2"
      user         = "nobody"
      kill_timeout = "7s"
      kill_signal  = "SIGTERM"
      config {
        command = "${NOMAD_TASK_DIR}/bin"
        args    = concat(["${local.greeting}", "${attr.cpu.arch}", node.unique.id, "$${kept}"], var.list)
        n       = var.n
        opts {
          a = "b"
        }
      }
      env {
        COUNT = var.n
        DIR   = "${NOMAD_ALLOC_DIR}/x"
      }
      resources {
        cpu        = 200
        memory     = 64
        memory_max = 128
      }
      template {
        data        = "${NOMAD_TASK_DIR} {{ env \"X\" }}"
        destination = "local/f"
        perms       = "600"
      }
      identity { file = true }
      lifecycle {
        hook    = "prestart"
        sidecar = true
      }
    }
  }
}`

func TestFullJob(t *testing.T) {
	j, err := Parse("job.hcl", []byte(fullJob), map[string]string{"who": "you", "list": `["p", "q"]`})
	if err != nil {
		t.Fatal(err)
	}
	g := j.TaskGroups[0]
	task := g.Tasks[0]
	check := func(what string, got, want any) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %#v, want %#v", what, got, want)
		}
	}
	check("id, type", []string{*j.ID, *j.Name, *j.Type, j.Meta["owner"]}, []string{"demo", "demo", "batch", "ops"})
	check("count", *g.Count, 2)
	check("dynamic ports", g.Networks[0].DynamicPorts, []nomad.Port{{Label: "http", To: 8080}})
	check("static ports", g.Networks[0].ReservedPorts, []nomad.Port{{Label: "fixed", Value: 99}})
	r := task.RestartPolicy
	check("restart is the group's", []any{*r.Attempts, *r.Delay, *r.Interval, *r.Mode}, []any{2, time.Second, 24 * time.Hour, "fail"})
	check("command", task.Config["command"], "${NOMAD_TASK_DIR}/bin")
	check("args", task.Config["args"], []any{"hello you", "${attr.cpu.arch}", "${node.unique.id}", "${kept}", "p", "q"})
	check("number", task.Config["n"], int64(3))
	check("nested block", task.Config["opts"], []any{map[string]any{"a": "b"}})
	check("env", task.Env, map[string]string{"COUNT": "3", "DIR": "${NOMAD_ALLOC_DIR}/x"})
	check("kill", []any{*task.KillTimeout, task.KillSignal}, []any{7 * time.Second, "SIGTERM"})
	check("resources", []int{*task.Resources.CPU, *task.Resources.MemoryMB, *task.Resources.MemoryMaxMB}, []int{200, 64, 128})
	check("template", *task.Templates[0].EmbeddedTmpl, `${NOMAD_TASK_DIR} {{ env "X" }}`)
	check("perms", *task.Templates[0].Perms, "600")
	check("lifecycle", *task.Lifecycle, nomad.TaskLifecycle{Hook: "prestart", Sidecar: true})
	check("identity", []any{task.Identities[0].Name, task.Identities[0].File}, []any{"default", true})
}

func TestJobDefaults(t *testing.T) {
	j, err := Parse("j", oneTask(`driver = "exec2"`), nil)
	if err != nil {
		t.Fatal(err)
	}
	task := j.TaskGroups[0].Tasks[0]
	if *j.Type != "service" || *task.Resources.CPU != 100 || *task.Resources.MemoryMB != 300 || *task.KillTimeout != 5*time.Second {
		t.Errorf("%+v", task)
	}
	if *task.RestartPolicy.Attempts != 2 || *task.RestartPolicy.Interval != 30*time.Minute {
		t.Errorf("restart of a service: %+v", task.RestartPolicy)
	}
	if *task.LogConfig.MaxFiles != 10 || *task.LogConfig.Disabled {
		t.Errorf("logs: %+v", task.LogConfig)
	}
}

func TestReservedCoresReplaceTheDefaultCPU(t *testing.T) {
	j, err := Parse("j", oneTask("driver = \"x\"\nresources { cores = 1 }"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if r := j.TaskGroups[0].Tasks[0].Resources; *r.CPU != 0 || *r.Cores != 1 {
		t.Errorf("cpu %d, cores %d", *r.CPU, *r.Cores)
	}
}

func TestATaskWithoutAGroupHasOneOfItsOwn(t *testing.T) {
	j, err := Parse("j", []byte("job \"j\" {\ntype = \"batch\"\ntask \"t\" { driver = \"x\" }\n}\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	g := j.TaskGroups[0]
	if *g.Name != "t" || *g.Count != 1 || *g.Tasks[0].RestartPolicy.Interval != 24*time.Hour {
		t.Errorf("group %s, count %d, restart %+v", *g.Name, *g.Count, g.Tasks[0].RestartPolicy)
	}
}

func TestNullIsAbsent(t *testing.T) {
	j, err := Parse("j", oneTask("driver = \"x\"\nuser = null\nkill_timeout = null"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if task := j.TaskGroups[0].Tasks[0]; task.User != "" || *task.KillTimeout != 5*time.Second {
		t.Errorf("user %q, kill_timeout %v", task.User, *task.KillTimeout)
	}
}

// oneTask is a job around the body of its only task.
func oneTask(body string) []byte { return oneGroup("task \"t\" {\n" + body + "\n}") }

func oneGroup(body string) []byte { return []byte("job \"j\" {\ngroup \"g\" {\n" + body + "\n}\n}\n") }

func TestBadJobs(t *testing.T) {
	for want, src := range map[string][]byte{
		"no job block":           nil,
		"has no group":           []byte(`job "j" {}`),
		"no task":                oneGroup(""),
		"missing driver":         oneTask(""),
		`"drivr" is not`:         oneTask(`drivr = "x"`),
		`"volum" are not`:        oneTask("driver = \"x\"\nvolum {}"),
		"artifact is not":        oneTask("driver = \"x\"\nartifact {}"),
		"not both":               oneTask("driver = \"x\"\nresources {\ncpu = 1\ncores = 1\n}"),
		"below memory":           oneTask("driver = \"x\"\nresources {\nmemory = 10\nmemory_max = 5\n}"),
		"none of prestart":       oneTask("driver = \"x\"\nlifecycle { hook = \"now\" }"),
		"neither fail nor delay": oneTask("driver = \"x\"\nrestart { mode = \"never\" }"),
		"is defined twice":       oneGroup("task \"t\" { driver = \"x\" }\ntask \"t\" { driver = \"x\" }"),
		"no value and no def":    append([]byte("variable \"v\" {}\n"), oneTask(`driver = "x"`)...),
		"without a destination":  oneTask("driver = \"x\"\ntemplate { data = \"\" }"),
		"logs need at least":     oneTask("driver = \"x\"\nlogs { max_files = 0 }"),
		"only one network":       oneGroup("network {}\nnetwork {}"),
		"mode \"cni/x\"":         oneGroup(`network { mode = "cni/x" }`),
		"cannot name a dir":      oneGroup(`task "a/b" { driver = "x" }`),
		"type \"system\"":        []byte("job \"j\" {\ntype = \"system\"\ngroup \"g\" {\ntask \"t\" { driver = \"x\" }\n}\n}"),
		"must be a string":       oneTask("driver = \"x\"\nconfig { a = node[0] }"),
	} {
		if _, err := Parse("j", src, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v", want, err)
		}
	}
	if _, err := Parse("j", oneTask(`driver = "x"`), map[string]string{"nope": "1"}); err == nil {
		t.Error("an undeclared -var must be refused")
	}
}
