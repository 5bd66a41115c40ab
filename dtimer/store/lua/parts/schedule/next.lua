-- Compute nominal times.
--
-- Reads     read_state
-- Sets      due_of expiry_of has_more is_due is_too_late jitter_of next_after runs_short

-- A schedule runs short if `ahead` has this many times or fewer.
local SHORT = 4

-- Return the nominal time after `nominal`, computed from the interval or taken off the list.
-- Return nil if there is none, or if it is not known yet.
local function next_after(state, nominal)
  local after
  if state.every ~= '' then
    local every, anchor = tonumber(state.every), tonumber(state.anchor)
    after = anchor + (math.floor((tonumber(nominal) - anchor) / every) + 1) * every
  else
    repeat
      local first, rest = string.match(state.ahead, '^(%d+),?(.*)$')
      if not first then return nil end
      state.ahead = rest
      after = tonumber(first)
    until after > tonumber(nominal)
  end
  if state.stop ~= '' and after > tonumber(state.stop) then
    state.left = '0'
    return nil
  end
  return after
end

-- Return whether there may be more nominal times than the list has.
local function has_more(state)
  return state.every == '' and state.final ~= '1' and state.left ~= '0'
end

-- Return the jitter of a nominal time: the same value on every call.
local function jitter_of(schedule, state, nominal)
  local width = tonumber(state.jitter) or 0
  if width == 0 then return 0 end
  local mixed = nominal % 2147483647
  for i = 1, #schedule do mixed = (mixed * 31 + string.byte(schedule, i)) % 2147483647 end
  -- Lehmer's generator. Its first results are close for close seeds, so use the third.
  for _ = 1, 3 do mixed = mixed * 48271 % 2147483647 end
  return math.floor(mixed / 2147483647 * (width + 1))
end

-- Return when the occurrence with this nominal time is due.
local function due_of(schedule, state, nominal)
  nominal = tonumber(nominal)
  return nominal + jitter_of(schedule, state, nominal)
end

-- Return whether an occurrence with this nominal time would be due.
local function is_due(schedule, state, nominal)
  return due_of(schedule, state, nominal) <= NOW
end

-- Return whether it is too late to start an occurrence that was due at this time.
local function is_too_late(state, due)
  return state.grace ~= '' and NOW > due + tonumber(state.grace)
end

-- Return when an occurrence that is due at this time expires; '' for never.
local function expiry_of(state, due)
  return state.expires ~= '' and digits(due + tonumber(state.expires)) or ''
end

-- Return whether nodes should add nominal times.
local function runs_short(schedule)
  local state = read_state(schedule)
  if not state or not has_more(state) then return false end
  local _, commas = string.gsub(state.ahead, ',', '')
  return commas < SHORT
end
