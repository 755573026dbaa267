package main

import (
	"reflect"
	"strings"
	"testing"
	"time"
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
	j, err := parseJob("job.hcl", []byte(fullJob), map[string]string{"who": "you", "list": `["p", "q"]`})
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
	check("id, type", []string{j.ID, j.Name, j.Type, j.Meta["owner"]}, []string{"demo", "demo", "batch", "ops"})
	check("count", g.Count, 2)
	check("ports", g.Network.Ports, []PortSpec{{Label: "http", To: 8080}, {Label: "fixed", Static: 99}})
	check("restart is the group's", task.Restart, Restart{Attempts: 2, Delay: time.Second, Interval: 24 * time.Hour, Mode: "fail"})
	check("command", task.Config["command"], "${NOMAD_TASK_DIR}/bin")
	check("args", task.Config["args"], []any{"hello you", "${attr.cpu.arch}", "${node.unique.id}", "${kept}", "p", "q"})
	check("number", task.Config["n"], int64(3))
	check("nested block", task.Config["opts"], []any{map[string]any{"a": "b"}})
	check("env", task.Env, map[string]string{"COUNT": "3", "DIR": "${NOMAD_ALLOC_DIR}/x"})
	check("kill", []any{task.KillTimeout, task.KillSignal}, []any{7 * time.Second, "SIGTERM"})
	check("resources", task.Resources, Resources{CPU: 200, MemoryMB: 64, MemoryMaxMB: 128, SecretsMB: 1})
	check("template", task.Templates[0].Data, `${NOMAD_TASK_DIR} {{ env "X" }}`)
	check("lifecycle", *task.Lifecycle, Lifecycle{Hook: "prestart", Sidecar: true})
	check("identity", task.Identities, []Identity{{Name: "default", File: true}})
}

func TestJobDefaults(t *testing.T) {
	j, err := parseJob("j", oneTask(`driver = "exec2"`), nil)
	if err != nil {
		t.Fatal(err)
	}
	task := j.TaskGroups[0].Tasks[0]
	if j.Type != "service" || task.Resources.CPU != 100 || task.Resources.MemoryMB != 300 || task.KillTimeout != 5*time.Second {
		t.Errorf("%+v", task)
	}
	if task.Restart.Attempts != 2 || task.Restart.Interval != 30*time.Minute {
		t.Errorf("restart of a service: %+v", task.Restart)
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
		"is there twice":         oneGroup("task \"t\" { driver = \"x\" }\ntask \"t\" { driver = \"x\" }"),
		"no value and no def":    append([]byte("variable \"v\" {}\n"), oneTask(`driver = "x"`)...),
		"without a destination":  oneTask("driver = \"x\"\ntemplate { data = \"\" }"),
		"mode \"cni/x\"":         oneGroup(`network { mode = "cni/x" }`),
		"cannot name a dir":      oneGroup(`task "a/b" { driver = "x" }`),
		"type \"system\"":        []byte("job \"j\" {\ntype = \"system\"\ngroup \"g\" {\ntask \"t\" { driver = \"x\" }\n}\n}"),
		"must be a string":       oneTask("driver = \"x\"\nconfig { a = node[0] }"),
	} {
		if _, err := parseJob("j", src, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v", want, err)
		}
	}
	if _, err := parseJob("j", oneTask(`driver = "x"`), map[string]string{"nope": "1"}); err == nil {
		t.Error("an undeclared -var must be refused")
	}
}

func TestSameJobSurvivesTheDisk(t *testing.T) {
	parse := func() *Job {
		j, err := parseJob("job.hcl", []byte(fullJob), nil)
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	var stored Job
	if err := remarshal(parse(), &stored); err != nil {
		t.Fatal(err)
	}
	stored.Version, stored.SubmitTime = 4, 5
	fresh := parse()
	if !sameJob(&stored, fresh) {
		t.Error("the same file must be the same job")
	}
	fresh.TaskGroups[0].Tasks[0].Config["command"] = "other"
	if sameJob(&stored, fresh) {
		t.Error("a changed config must be another job")
	}
}
