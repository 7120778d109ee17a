#!lua flags=no-writes
-- How many durable jobs wait in some partitions.
-- KEYS: the counts of each partition, which name its policies. ARGV: a policy, or '' for all.
local waiting = 0
-- A queue that is none has no jobs that could be begun.
local function add(queue)
  local count = redis.pcall('ZCARD', queue)
  waiting = waiting + (type(count) == 'number' and count or 0)
end
for _, counts in ipairs(KEYS) do
  -- The key of the counts is what stands before the kind of a key, and 'n'.
  local queues = string.sub(counts, 1, -2) .. 'q:'
  if ARGV[1] ~= '' then
    add(queues .. ARGV[1])
  else
    local names = redis.pcall('HGETALL', counts)
    for i = 1, #names, 2 do
      if string.sub(names[i], 1, 1) == 'j' then
        add(queues .. string.sub(names[i], 2))
      end
    end
  end
end
return waiting
