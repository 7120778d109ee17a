#!lua flags=no-writes
-- How many durable jobs wait in some partitions.
-- KEYS: the counts of each partition, which name its policies. ARGV: a policy, or '' for all.
local waiting = 0
for _, counts in ipairs(KEYS) do
  -- The key of the counts is what stands before the kind of a key, and 'n'.
  local queues = string.sub(counts, 1, -2) .. 'q:'
  if ARGV[1] ~= '' then
    waiting = waiting + redis.call('ZCARD', queues .. ARGV[1])
  else
    local names = redis.call('HGETALL', counts)
    for i = 1, #names, 2 do
      if string.sub(names[i], 1, 1) == 'j' then
        waiting = waiting + redis.call('ZCARD', queues .. string.sub(names[i], 2))
      end
    end
  end
end
return waiting
