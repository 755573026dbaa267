package harness

import (
	"encoding/json"
	"errors"
	"io"
	"unicode/utf8"

	"pluginhost/internal/plugin"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// errPrinted means that the error is on stdout already.
var errPrinted = errors.New("the call failed")

// rpcError is an error of the driver as the harness prints it. Like Nomad, it
// treats an error without a RecoverableError detail as unrecoverable.
type rpcError struct {
	Code        string `json:"code"`
	Message     string `json:"message"`
	Recoverable bool   `json:"recoverable"`
}

func newRPCError(err error) *rpcError {
	st := status.Convert(err)
	return &rpcError{Code: st.Code().String(), Message: st.Message(), Recoverable: plugin.RecoverableDetail(err).GetRecoverable()}
}

// printJSON prints v with an indent of two.
func printJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// fail prints an error of the driver.
func (c *command) fail(err error) error {
	if err := printJSON(c.out, map[string]any{"error": newRPCError(err)}); err != nil {
		return err
	}
	return errPrinted
}

// answer prints the result of a call: the message with its breaches of the
// protocol, or the error.
func (c *command) answer(m proto.Message, breaches []string, err error) error {
	if err != nil {
		return c.fail(err)
	}
	raw, err := plugin.JSON(m)
	if err != nil {
		return err
	}
	if len(breaches) == 0 {
		return printJSON(c.out, raw)
	}
	fields := map[string]any{}
	if err := json.Unmarshal(raw, &fields); err != nil {
		return err
	}
	fields["violations"] = breaches
	return printJSON(c.out, fields)
}

// output is the output of a command: a JSON string, or an object with the base64
// form if it is not UTF-8.
type output []byte

func (o output) MarshalJSON() ([]byte, error) {
	if utf8.Valid(o) {
		return json.Marshal(string(o))
	}
	return json.Marshal(map[string][]byte{"base64": o})
}
