"""What the scenarios share. It uses only the API of the NixOS test driver and the `nomad` command of the guest.

`guest` has the machine, `agent` the Nomad agent, `jobs` the text of jobs, `allocs` jobs that run, `tasks` the processes of running
tasks, `cleanup` what tasks leave behind, `probes` what a task may do, `defaults` what
it may by default, and `cli` the driver without an agent.
"""
