// Package schematest builds schemas for tests.
package schematest

import "pluginhost/pb"

// Attr is an attribute of an HCL type.
func Attr(name, ty string, required bool) *pb.Spec {
	return &pb.Spec{Block: &pb.Spec_Attr{Attr: &pb.Attr{Name: name, Type: ty, Required: required}}}
}

// Literal is a constant HCL expression.
func Literal(src string) *pb.Spec {
	return &pb.Spec{Block: &pb.Spec_Literal{Literal: &pb.Literal{Value: src}}}
}

// OrElse is primary, or the literal src where that is absent.
func OrElse(primary *pb.Spec, src string) *pb.Spec {
	return &pb.Spec{Block: &pb.Spec_Default{Default: &pb.Default{Primary: primary, Default: Literal(src)}}}
}

// Object is an object of the given attributes.
func Object(attrs map[string]*pb.Spec) *pb.Spec {
	return &pb.Spec{Block: &pb.Spec_Object{Object: &pb.Object{Attributes: attrs}}}
}

// TaskSpec is a schema with each kind that drivers commonly use.
func TaskSpec() *pb.Spec {
	return Object(map[string]*pb.Spec{
		"command": Attr("command", "string", true),
		"args":    Attr("args", "list(string)", false),
		"flag":    OrElse(Attr("flag", "bool", false), "true"),
		"text":    OrElse(Attr("text", "string", false), `"a\nb"`),
		"count":   Attr("count", "number", false),
		"labels":  Attr("labels", "list(map(string))", false),
		"mount": {Block: &pb.Spec_BlockList{BlockList: &pb.BlockList{Name: "mount", Nested: Object(map[string]*pb.Spec{
			"source": Attr("source", "string", true),
		})}}},
		"logging": {Block: &pb.Spec_BlockValue{BlockValue: &pb.Block{Name: "logging", Nested: Object(map[string]*pb.Spec{
			"type": OrElse(Attr("type", "string", false), `"journald"`),
		})}}},
	})
}
