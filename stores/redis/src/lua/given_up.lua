#!lua flags=allow-oom
-- The jobs of a partition that were given up, or whose records could not be read: ids and records.
-- KEYS: those that were. ARGV: what a job's key begins with, how many are wanted, and how many before
-- them are passed over.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. clock())
local found = {}
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], ARGV[3], ARGV[3] + ARGV[2] - 1)) do
  found[#found + 1] = id
  -- One that is no hash has none.
  local record = redis.pcall('HGETALL', ARGV[1] .. id)
  found[#found + 1] = not record.err and record
end
return found
