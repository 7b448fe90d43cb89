{{- define "reshard.name" -}}
{{- printf "%s-operator" .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "reshard.labels" -}}
app.kubernetes.io/name: reshard
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "reshard.selector" -}}
app.kubernetes.io/name: reshard
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "reshard.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "reshard.name" .) -}}
{{- end -}}

{{- /* Image reference: by digest if it is set, otherwise by tag. */ -}}
{{- define "reshard.image" -}}
{{- $image := index . 0 -}}{{- $root := index . 1 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository ($image.tag | default $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- /* Permissions of the operator in each namespace that it watches. */ -}}
{{- define "reshard.rules" -}}
- apiGroups: [reshard.dev]
  resources: [checkpointtransforms]
  verbs: [get, list, watch]
- apiGroups: [reshard.dev]
  resources: [checkpointtransforms/status]
  verbs: [patch]
- apiGroups: [reshard.dev]
  resources: [checkpointtransforms/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [create]
- apiGroups: [""]
  resources: [pods]
  verbs: [list]
- apiGroups: [""]
  resources: [events]
  verbs: [list]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end -}}
