{{- define "gateway.name" -}}
{{ .Values.name | default .Release.Name }}
{{- end -}}

{{- define "gateway.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "gateway.name" .) }}
{{- else }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end -}}

{{- /* What Gateway objects and the Service select. */ -}}
{{- define "gateway.selector" -}}
app: {{ .Values.labels.app | default (include "gateway.name" .) | quote }}
istio: {{ .Values.labels.istio | default (include "gateway.name" . | trimPrefix "istio-") | quote }}
{{- end -}}

{{- /* Labels of every object; with more of them: dict "root" . "more" DICT. Ours win over the user's. */ -}}
{{- define "gateway.labels" -}}
{{- $root := .root | default . -}}
{{- $name := include "gateway.name" $root -}}
{{- $release := dict "app.kubernetes.io/name" $name "app.kubernetes.io/instance" $root.Release.Name "app.kubernetes.io/part-of" "istio" "app.kubernetes.io/managed-by" $root.Release.Service "app.kubernetes.io/version" $root.Chart.AppVersion "operator.istio.io/component" "Gateway" "istio.io/rev" ($root.Values.revision | default "default") -}}
{{ include "gateway.selector" $root }}
{{ toYaml (merge $release (.more | default dict) (omit $root.Values.labels "app" "istio")) }}
{{- end -}}

{{- /* A text or number as text. What Go itself makes of a large number has an exponent. */ -}}
{{- define "gateway.text" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end }}
{{- end -}}
