-- Health of a LlamaDeployment, for Argo CD: `resource.customizations.health.llamero.dev_LlamaDeployment` of the ConfigMap argocd-cm.
-- A deployment at zero is healthy: that is what was asked for.
local waits = {status = "Progressing", message = "waits for the operator"}
if obj.status == nil or obj.status.conditions == nil then
  return waits
end
if obj.metadata.generation ~= nil and obj.status.observedGeneration ~= obj.metadata.generation then
  return waits
end
local conditions = {}
for _, condition in ipairs(obj.status.conditions) do
  conditions[condition.type] = condition
end
local function is(kind, status)
  return conditions[kind] ~= nil and conditions[kind].status == status
end
local function told(status, kind)
  local words = conditions[kind] ~= nil and conditions[kind].message or ""
  if words == "" then
    words = obj.status.message or ""
  end
  return {status = status, message = words}
end
local progressing = conditions["Progressing"] or {reason = ""}
if is("Accepted", "False") then
  return told("Degraded", "Accepted")
end
if progressing.reason == "Paused" or progressing.reason == "Canary" then
  return told("Suspended", "Progressing")
end
if is("Stalled", "True") then
  return told("Degraded", "Stalled")
end
if is("Ready", "True") and not is("Reconciling", "True") then
  return told("Healthy", "Ready")
end
if is("Ready", "True") then
  return told("Progressing", "Reconciling")
end
return told("Progressing", "Ready")
