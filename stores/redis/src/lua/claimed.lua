#!lua flags=allow-oom
-- The job that has a claim: its id and its record. KEYS: the claim. ARGV: what a job's key begins with.
return holder_of(KEYS[1], ARGV[1]) or {}
