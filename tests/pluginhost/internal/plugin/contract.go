package plugin

import (
	"fmt"

	"pluginhost/pb"
)

// gap is the breach of an answer without a message that Nomad reads unchecked.
func gap(method, field string) string {
	return fmt.Sprintf("%s: the answer lacks %s: the Nomad agent would panic", method, field)
}

// StartGaps returns what a StartTask answer lacks.
func StartGaps(resp *pb.StartTaskResponse) []string {
	if resp.GetHandle().GetConfig() == nil {
		return []string{gap("StartTask", "handle.config")}
	}
	return nil
}

// StartFaults returns what Nomad would misread in the StartTask answer for task id.
func StartFaults(id string, resp *pb.StartTaskResponse) (breaches []string) {
	h := resp.GetHandle()
	if got := h.GetConfig().GetId(); got != id {
		breaches = append(breaches, fmt.Sprintf("StartTask: handle.config.id is %q instead of %q", got, id))
	}
	if h.GetState() != pb.TaskState_RUNNING {
		breaches = append(breaches, fmt.Sprintf("StartTask: handle.state is %v instead of RUNNING", h.GetState()))
	}
	return breaches
}

// InspectGaps returns what an InspectTask answer lacks.
func InspectGaps(resp *pb.InspectTaskResponse) (breaches []string) {
	t := resp.GetTask()
	if t == nil {
		return []string{gap("InspectTask", "task")}
	}
	for field, missing := range map[string]bool{
		"task.started_at": t.GetStartedAt() == nil, "task.completed_at": t.GetCompletedAt() == nil, "task.result": t.GetResult() == nil,
	} {
		if missing {
			breaches = append(breaches, gap("InspectTask", field))
		}
	}
	return breaches
}

// StatsGaps returns what a TaskStats answer lacks.
func StatsGaps(resp *pb.TaskStatsResponse) []string {
	s := resp.GetStats()
	if s.GetTimestamp() == nil || s.GetAggResourceUsage() == nil {
		return []string{gap("TaskStats", "stats.timestamp or stats.agg_resource_usage")}
	}
	return nil
}

// ExecGaps returns what an ExecTask answer lacks.
func ExecGaps(resp *pb.ExecTaskResponse) []string {
	if resp.GetResult() == nil {
		return []string{gap("ExecTask", "result")}
	}
	return nil
}
