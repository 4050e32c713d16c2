{{- define "ebbtide.name" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "ebbtide.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{ .Values.fullnameOverride | default $full | trunc 53 | trimSuffix "-" }}
{{- end }}

{{- define "ebbtide.selector" -}}
app.kubernetes.io/name: {{ include "ebbtide.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ebbtide.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "ebbtide.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "ebbtide.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (ternary (include "ebbtide.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "ebbtide.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "ebbtide.adminPort" -}}
{{ regexFind "[0-9]+$" .Values.config.admin.address }}
{{- end }}

{{/* In a pod that is not on the node's network, nodePorts would bind ports that no client reaches, and
no client is led to it. Nor does the kubelet's call of a pod's gate come there. */}}
{{- define "ebbtide.config" -}}
{{- $config := ternary (omit .Values.config "nodePorts" "services" "gate") .Values.config (eq .Values.kind "Deployment") }}
{{- if kindIs "map" $config.gate }}
{{- $service := printf "%s/%s-gate" .Release.Namespace (include "ebbtide.fullname" .) }}
{{- $config = merge (dict "gate" (merge (dict) $config.gate (dict "service" $service))) $config }}
{{- end }}
{{ toYaml $config }}
{{- end }}

{{/* Not empty if the addresses of Services are served, so that a container `net` is needed. */}}
{{- define "ebbtide.net" -}}
{{- $addresses := dig "services" "addresses" "off" .Values.config | toString }}
{{- if and (eq .Values.kind "DaemonSet") (has $addresses (list "on" "true")) }}yes{{ end }}
{{- end }}

{{- define "ebbtide.probe" -}}
httpGet:
  {{- if eq .root.Values.kind "DaemonSet" }}
  host: 127.0.0.1
  {{- end }}
  port: {{ include "ebbtide.adminPort" .root }}
  path: {{ .path }}
{{ toYaml .probe }}
{{- end }}
