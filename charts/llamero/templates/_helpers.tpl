{{- define "llamero.image" -}}
{{ include "llamero.reference" (dict "image" .Values.image "root" $) }}
{{- end }}
{{- define "llamero.workerImage" -}}
{{ include "llamero.reference" (dict "image" .Values.workerImage "root" $) }}
{{- end }}
{{- /* An image by its digest, else by its tag: (dict "image" .Values.image "root" $). */}}
{{- define "llamero.reference" -}}
{{ .image.repository }}{{ with .image.digest }}@{{ . }}{{ else }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}
{{- define "llamero.labels" -}}
app.kubernetes.io/part-of: llamero
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
{{- /* Selector labels of a part: (dict "name" "llamero-gateway" "root" $). */}}
{{- define "llamero.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}
{{- /* How pods of a part are scheduled: (dict "name" "llamero-gateway" "values" .Values.gateway "root" $). */}}
{{- define "llamero.scheduling" -}}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
topologySpreadConstraints:
{{- if .values.topologySpreadConstraints }}
{{ toYaml .values.topologySpreadConstraints }}
{{- else }}
{{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "llamero.selector" (dict "name" $.name "root" $.root) | nindent 8 }}
{{- end }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- define "llamero.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}
{{- define "llamero.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
{{- /* Whether a name is meant by one of the patterns: a name, or its beginning followed by *. */}}
{{- define "llamero.matches" -}}
(p, p.endsWith('*') ? {{ . }}.startsWith(p.substring(0, size(p) - 1)) : {{ . }} == p)
{{- end }}
{{- /* CEL: whether it is the installation's own worker image by a digest, with or without a tag: (dict "image" "variables.image" "own" "repository"). */}}
{{- define "llamero.isOwnByDigest" -}}
({{ .image }}.contains('@') && ({{ .image }}.startsWith('{{ .own }}@') ||
        ({{ .image }}.startsWith('{{ .own }}:') && !{{ .image }}.split('@')[0].substring(size('{{ .own }}')).contains('/'))))
{{- end }}
{{- /* What both programs must reach: names, and the API server, which policies cannot select and so is meant by its ports. */}}
{{- define "llamero.basicEgress" -}}
- ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
- ports:
    {{- range .Values.networkPolicy.apiServerPorts }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end }}
{{- /* `helm upgrade --reuse-values` keeps the values of an older chart, which knows nothing of what came since. */}}
{{- define "llamero.checkValues" -}}
{{- range $key := list "tenants" "networkPolicy" "security" "watchNamespaces" "sharedObjects" }}
{{- if not (hasKey $.Values $key) }}
{{- fail (printf "the values have no %s, as those of an older chart: upgrade with --reset-then-reuse-values in place of --reuse-values" $key) }}
{{- end }}
{{- end }}
{{- if not (hasKey .Values.security "certificates") }}
{{- fail "the values have no security.certificates, as those of an older chart: upgrade with --reset-then-reuse-values in place of --reuse-values" }}
{{- end }}
{{- if not (or .Values.rbac.clusterReader .Values.watchNamespaces) }}
{{- fail "rbac.clusterReader is false, which needs watchNamespaces: name the namespaces that are served, or set it to true" }}
{{- end }}
{{- if and .Values.security.mtls (not .Values.security.certificates) }}
{{- fail "security.mtls needs security.certificates: set it to true, or security.mtls to false" }}
{{- end }}
{{- end }}
{{- /* Names of objects of the whole cluster: an installation that serves some namespaces stands beside others. (dict "name" "llamero-operator" "root" $). */}}
{{- define "llamero.clusterName" -}}
{{ .name }}{{ if .root.Values.watchNamespaces }}-{{ .root.Release.Namespace }}{{ end }}
{{- end }}
{{- /* What the operator may do in the namespaces that it serves. */}}
{{- define "llamero.operatorRules" -}}
- apiGroups: [llamero.dev]
  resources: [llamadeployments]
  verbs: [list, watch]
- apiGroups: [llamero.dev]
  resources: [llamadeployments/status, llamagroups/status]
  verbs: [patch]
- apiGroups: [llamero.dev]
  resources: [llamadeployments/scale]
  verbs: [update]
- apiGroups: [llamero.dev]
  resources: [llamadeployments/finalizers, llamagroups/finalizers]
  verbs: [update]
- apiGroups: [llamero.dev]
  resources: [llamagroups]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch]
{{- if .Values.rbac.clusterReader }}
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [list, watch]
{{- end }}
- apiGroups: [apps]
  resources: [controllerrevisions]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
{{- /* What it reads and asks of the whole cluster. */}}
{{- define "llamero.operatorClusterRules" -}}
{{- if .Values.rbac.clusterReader }}
# What room there is.
{{- if .Values.watchNamespaces }}
- apiGroups: [""]
  resources: [nodes, pods]
  verbs: [list, watch]
{{- else }}
- apiGroups: [""]
  resources: [nodes]
  verbs: [list, watch]
{{- end }}
- apiGroups: [scheduling.k8s.io]
  resources: [priorityclasses]
  verbs: [list, watch]
# On which nodes claims can be mounted.
- apiGroups: [""]
  resources: [persistentvolumes]
  verbs: [list, watch]
- apiGroups: [storage.k8s.io]
  resources: [csidrivers]
  verbs: [list, watch]
{{- end }}
{{- if .Values.security.certificates }}
# Whose token a pod shows that enrols.
- apiGroups: [authentication.k8s.io]
  resources: [tokenreviews]
  verbs: [create]
{{- end }}
{{- if or .Values.crds.manage .Values.rbac.clusterReader }}
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  resourceNames: [llamadeployments.llamero.dev, llamagroups.llamero.dev]
  verbs: [get{{ if .Values.crds.manage }}, patch{{ end }}]
{{- end }}
{{- end }}
{{- /* What gateways read in the namespaces that are served. */}}
{{- define "llamero.gatewayRules" -}}
- apiGroups: [llamero.dev]
  resources: [llamadeployments, llamagroups]
  verbs: [list, watch]
{{- end }}
