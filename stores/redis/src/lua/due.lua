#!lua flags=allow-oom
-- Which queues of a policy have a job that is due. KEYS: the queues, each of a partition of its own.
-- Gives the milliseconds until the next of the others is due, or -1, and the numbers of those that have,
-- from 1.
local due, next_due = {}, -1
for number, waiting in ipairs(KEYS) do
  -- One that is not as it should be keeps no other from its turn.
  local is_readable, id, left = pcall(first_due, waiting, 0)
  if not is_readable then
    id = nil
  end
  if id and left <= 0 then
    due[#due + 1] = number
  elseif id and (next_due < 0 or left < next_due) then
    next_due = left
  end
end
return {math.ceil(next_due), due}
