// The conformance suite of the Gateway API, as it is. Its flags say which class and which profiles.
package gateway

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

func TestConformance(t *testing.T) { conformance.RunConformance(t) }
