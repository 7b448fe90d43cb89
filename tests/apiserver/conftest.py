from kubernetes_access import api, layout, namespace

__all__ = ["api", "layout", "namespace"]
