"""What users write, their files and their code: each fault is one sentence that names its place."""
