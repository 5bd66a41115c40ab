-- Compare the nominal times of a cron schedule that is declared again with those that are stored.
-- If they differ, the data of its time zone has changed, and the new times replace the stored
-- ones. Only future times are compared, over the period that both lists cover.
--
-- Commands  zscore

-- Return the times of a list that are after `low` and not after `high`.
local function times_within(list, low, high)
  local within = {}
  for time in string.gmatch(list, '%d+') do
    time = tonumber(time)
    if time > low and time <= high then within[#within + 1] = time end
  end
  return within
end

-- Return the moment up to which a list is complete.
local function known_until(list, final)
  return final == '1' and math.huge or tonumber(string.match(list, '(%d+)$') or 0)
end

-- Return the times of all given lists as one text, joined by ','.
local function written(...)
  local texts = {}
  for _, times in ipairs({...}) do
    for _, time in ipairs(times) do texts[#texts + 1] = digits(time) end
  end
  return table.concat(texts, ',')
end

-- Store `times` in place of the known ones. Return whether they differ. The pending occurrence
-- moves with them, unless it is due already or was rescheduled.
local function retime(schedule, state, times, final)
  if state.every ~= '' or state.next == '' then return false end
  local pending, last = tonumber(state.next), tonumber(state.last)
  local kept = state.ahead == '' and state.next or state.next .. ',' .. state.ahead
  local over = math.max(NOW, last or 0)
  local high = math.min(known_until(kept, state.final), known_until(times, final))
  local known = times_within(kept, over, math.huge)
  local fresh = times_within(times, over, math.huge)
  if written(times_within(kept, over, high)) == written(times_within(times, over, high)) then
    return false
  end

  -- Time zones change by about an hour. So the first new time may belong to an occurrence that was
  -- already claimed at its old time. That occurrence must not be created twice.
  local before = pending <= over and pending or last
  -- Return whether the first new time is nearer to `one` than to `another`.
  local function belongs_to(one, another)
    return fresh[1] and one and another
      and math.abs(fresh[1] - one) < math.abs(fresh[1] - another)
  end
  if belongs_to(before, known[1]) then table.remove(fresh, 1) end

  local coming = pending
  -- If the new time of the pending occurrence is already past, the first new time belongs to the
  -- occurrence after it. Then the pending occurrence keeps its old time: it is late, but not lost.
  if pending > over and not belongs_to(known[2], pending) then
    local moved = table.remove(fresh, 1)
    local id = schedules().occurrence_id(schedule, state.next)
    local score = tonumber(redis.call('ZSCORE', DUE, id))
    local usual = score == pending + schedules().jitter_of(schedule, state, pending)
    if moved and (usual or state.paused == '1') then coming = moved end
  end

  -- The declared times still include those that were dropped above. So the comparison above finds
  -- a difference at every declaration. Compare the result as well: if it is stored already, this
  -- declaration changes nothing.
  local ahead = written(times_within(state.ahead, 0, over), fresh)
  if coming == pending
    and written(times_within(ahead, 0, high)) == written(times_within(state.ahead, 0, high)) then
    return false
  end
  if coming ~= pending then
    schedules().try_writes(schedule, state)
    remove(schedules().occurrence_id(schedule, state.next))
    state.next, state.waits = digits(coming), ''
    if state.paused == '' then schedules().store_pending(schedule, state) end
  end
  state.ahead, state.final = ahead, final
  schedules().write_state(schedule, state)
  return true
end
