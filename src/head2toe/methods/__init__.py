"""The paper's methods: settings and `fit(backbone, task, store) -> Head`."""
