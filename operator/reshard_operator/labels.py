"""Labels and annotations of the objects that the operator creates."""

from __future__ import annotations

MANAGED_BY = "reshard-operator"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_TRANSFORM = "reshard.dev/transform-uid"
LABEL_TARGET = "reshard.dev/target"
LABEL_STEP = "reshard.dev/step"
LABEL_STAGE = "reshard.dev/stage"
ANNOTATION_TRANSFORM = "reshard.dev/transform"
ANNOTATION_ATTEMPT = "reshard.dev/attempt"
ANNOTATION_SPEC = "reshard.dev/spec-digest"
ANNOTATION_CREATED = "reshard.dev/transform-created"
# The label of Kueue, which a transform passes on to its Jobs.
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
# Kubernetes sets these on the pods of a Job. The index is an annotation and a label.
ANNOTATION_INDEX = "batch.kubernetes.io/job-completion-index"
LABEL_JOB = "batch.kubernetes.io/controller-uid"
