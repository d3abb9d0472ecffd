"""Labels that say nothing about what a pod is: they differ from pod to pod, or from rollout to rollout.

They stay out of identities, else every pod would be an identity of its own, unless a policy selects on one of them
(records.IdentityKeys).
"""

HIGH_CARDINALITY = frozenset(
    {
        "apps.kubernetes.io/pod-index",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-completion-index",
        "batch.kubernetes.io/job-name",
        "controller-revision-hash",
        "controller-uid",
        "job-name",
        "pod-template-generation",
        "pod-template-hash",
        "statefulset.kubernetes.io/pod-name",
    }
)
