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

{{- /* What Gateway objects select. */ -}}
{{- define "gateway.selector" -}}
{{- if .Values.labels }}{{ toYaml .Values.labels }}
{{- else -}}
app: {{ include "gateway.name" . }}
istio: {{ include "gateway.name" . | trimPrefix "istio-" }}
{{- end }}
{{- end -}}

{{- define "gateway.labels" -}}
{{ include "gateway.selector" . }}
istio.io/rev: {{ .Values.revision | default "default" | quote }}
app.kubernetes.io/name: {{ include "gateway.name" . }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/part-of: istio
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
operator.istio.io/component: Gateway
{{- end -}}
