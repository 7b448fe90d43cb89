from kubernetes_access import api, layout, namespace
from transforms_on_cluster import operator, stage

__all__ = ["api", "layout", "namespace", "operator", "stage"]
