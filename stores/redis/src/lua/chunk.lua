#!lua
-- Puts a chunk of an outcome beside those before. KEYS: where. ARGV: the chunk, and for how many
-- milliseconds all are kept.
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
